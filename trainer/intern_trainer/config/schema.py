"""The whole configuration of a run: every key, its meaning, its default.

Unknown keys are refused. Rules inside one section are checked here; rules across sections in `checks.py`. No torch, so
that a configuration is checked in a fraction of a second on a login node. What DeepSpeed owns (ZeRO, communication,
offload) lives in its own file, `--ds_config`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from intern_trainer.config.guard import Guard
from intern_trainer.config.losses import Local, Loss
from intern_trainer.config.section import Fraction, PositiveInt, Section, as_list

UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""`~` is the user's home."""


def _as_sources(value: Any) -> Any:
    """Bare locations, however many, are one source; mappings are sources of their own."""
    items = as_list(value)
    bare = [item for item in items if isinstance(item, str)]
    sources = [item for item in items if not isinstance(item, str)]
    return ([{"location": bare}] if bare else []) + sources


def _as_weights(value: Any) -> Any:
    """Names without weights count alike."""
    return value if isinstance(value, dict) else dict.fromkeys(as_list(value), 1.0)


class TextTower(Section):
    """Text transformer (open_clip's)."""

    width: PositiveInt = 512
    layers: PositiveInt = 12
    heads: PositiveInt = 8
    context_length: PositiveInt = 77
    tokenizer: str = "clip"
    """`clip` for CLIP's byte pairs, or a folder with tokenizer.json and tokenizer_config.json, as transformers'
    save_pretrained and `intern-trainer data tokenizer` write it. Nothing is downloaded. A run keeps to the tokenizer
    that it began with, and its export takes it along."""
    pack: bool = False
    """Compute only the tokens up to each caption's end, all captions of a micro-batch in one row: the same features for
    less work where captions are shorter than `context_length`. Utilisation (MFU) still counts full captions."""


class Model(Section):
    """The two towers."""

    image: str = "metanet_debug"
    """Image tower: a name that `intern_zoo.list_models()` knows."""
    image_options: dict[str, Any] = {}
    """Overrides for the image tower's constructor, such as `norm: layer` or `drop_path: 0.1`."""
    image_size: PositiveInt = 224
    """Side of the square training picture in pixels."""
    text: TextTower = TextTower()
    embed_dim: PositiveInt = 512
    """Width of the space that both towers meet in."""
    max_logit_scale: Annotated[float, Field(gt=0)] = 100.0
    """Upper bound of exp(logit scale), as in CLIP."""
    min_logit_scale: Annotated[float, Field(ge=0)] = 0.0
    """Lower bound of exp(logit scale); DeCLIP's is exp(3) = 20.1."""
    freeze: Annotated[list[str], BeforeValidator(as_list)] = []
    """`image`, `text`, or patterns (fnmatch) of parameter names that stay as they are. Frozen `image` with trained
    `text` is LiT."""


class Source(Section):
    """One set of shards."""

    location: Annotated[list[str], BeforeValidator(as_list)]
    """`embedded:train|validation|test`, or tar files: paths, globs, brace ranges, s3:// gs:// http(s):// addresses."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the samples drawn from this source, relative to the other sources."""
    name: str | None = None
    """Short name in sample ids and logs; from the location if not given."""


Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


class Augment(Section):
    """Training pictures: random crop, flip, colours and blur, with draws of its own for each view (see `policy`)."""

    policy: Literal["crop", "moco"] = "crop"
    """Sets the other keys where they are not given: `crop` as below; `moco` as MoCo v2 and DeCLIP: crops of 0.2 to 1 of
    the area, flip 0.5, jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8, grey 0.2, blur 0.5."""
    crop_scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    flip: Fraction = 0.0
    """Probability of a horizontal flip (0 where captions say left or right)."""
    drop_tokens: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a caption's tokens that is left out at random, start and end aside."""
    jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, Field(ge=0, le=0.5)]] = (0.0, 0.0, 0.0, 0.0)
    """Largest change of brightness, contrast, saturation (as factors, around 1) and hue (of the colour circle), in
    random order."""
    jitter_probability: Fraction = 0.0
    grey: Fraction = 0.0
    """Probability of a picture without colours."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of the model's picture."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """What is not given comes from the policy."""
        if isinstance(given, dict) and given.get("policy") == "moco":
            return {**MOCO, **given}
        return given


MOCO = {
    "crop_scale": (0.2, 1.0),
    "flip": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_probability": 0.8,
    "grey": 0.2,
    "blur": 0.5,
}
"""MoCo v2 (arXiv 2003.04297), as DeCLIP's code has it."""


class Data(Section):
    train: Sources = [Source(location=["embedded:train"])]
    lanes: PositiveInt = 64
    """Fixed number of virtual readers that the order of samples is made of; a divisor of the global batch. Best a
    multiple of the world size: ranks then share no lane."""
    shuffle_window: PositiveInt = 2048
    """Samples of one lane that are shuffled among themselves."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes a rank; 0 reads in the training process."""
    prefetch: PositiveInt = 2
    """Micro-batches that each worker prepares ahead."""
    index_dir: UserPath | None = None
    """Where indexes of shards (and catalogues of sources) go that lie in places one cannot write to."""
    read_ahead_mb: PositiveInt = 2048
    """Memory in MiB that a worker may use to hold what it reads of remote shards: two shuffle windows for each lane
    that it serves (4 lanes x 2 x 2048 samples of 50 kB are 0.8 GB). Where that is not enough samples are read one by
    one, unless there is a `cache_dir`. Lanes that several workers share are read by each: best `lanes` is a multiple
    of ranks x workers."""
    cache_dir: UserPath | None = None
    """Folder on a local disk where all workers of a node keep what they read of remote shards, instead of in memory."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """Size limit of `cache_dir` in GB; what was not used for the longest time goes first."""
    max_bad_fraction: Fraction = 0.001
    """The run stops when more than this share of the samples read so far was unusable (at least one is always let
    pass)."""
    max_pixels: PositiveInt = 40_000_000
    """Pictures with this many pixels or more are bad samples."""
    max_caption_chars: PositiveInt = 5000
    """Captions longer than this are bad samples."""
    caption_keys: Annotated[list[str], BeforeValidator(as_list)] = [
        "txt", "json.caption", "json.captions", "json.title",
    ]  # fmt: skip
    """Where captions are, first match wins: a member's extension, or a key inside the sample's `json`: a text, a list
    of texts, or a mapping of languages to either. `{language}` in a key stands for each of `languages`. A `txt` may
    hold translations in further lines, as `de.utf8=...`; its first line is English (`en`)."""
    caption_choice: Literal["first", "random"] = "first"
    """Which of several captions in one language a picture gets in training: the first, or one drawn anew each epoch."""
    languages: Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_as_weights)] = {}
    """Languages of captions, with weights: `{en: 0.7, de: 0.3}`, or a list, which counts all alike. One is drawn for
    each sample among those that it has; languages that it lacks leave their weight to the others, and a sample with
    none of them is a bad one. Captions that do not say their language are taken as they are. Evaluation takes the first
    caption in the first of these languages that a sample has. Empty: the first language of each sample; with
    `caption_choice: random` any of them."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel mean and standard deviation that pictures are normalised with (defaults: CLIP's)."""
    augment: Augment = Augment()
    decoder: Literal["auto", "pillow", "simplejpeg", "dali"] = "auto"
    """What decodes the JPEGs of training. pillow and simplejpeg give the same pixels; auto: simplejpeg, the faster one,
    where it is installed (`pip install simplejpeg`). `dali` decodes and crops on the GPU with NVIDIA's DALI (installed
    by hand: nvidia-dali-cuda130), for crops and flips alone; it rounds otherwise, by up to 4 of 255."""
    shuffle_captions: bool = False
    """Control experiment: each picture gets another sample's caption, by a fixed permutation. Evaluation is
    untouched."""


class Schedule(Section):
    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up from `start_lr`."""
    start_lr: Annotated[float, Field(ge=0)] = 0.0
    min_lr: Annotated[float, Field(ge=0)] = 0.0


class Optim(Section):
    name: Literal["adamw", "ds_fused_adam", "ds_cpu_adam", "apex_fused_adam", "apex_fused_lamb", "apex_fused_sgd"] = (
        "adamw"
    )
    """`adamw` is torch's (fused where it can be). `ds_*` are DeepSpeed's and compile on first use; `apex_*` need
    NVIDIA's apex, built from source."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Not applied to norms, biases, logit scale, XCA temperature, layer scale and other 1-D parameters."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    momentum: Fraction = 0.9
    """For SGD."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: Schedule = Schedule()


class Phase(Section):
    """A first part of the run, with pictures or batches of another size (progressive resolution)."""

    until: Annotated[float, Field(gt=0, le=1)]
    """Share of the run's samples (`train.steps x train.global_batch`) after which it ends."""
    image_size: PositiveInt | None = None
    """Side of the training picture; None: `model.image_size`."""
    global_batch: PositiveInt | None = None
    """None: `train.global_batch`."""
    micro_batch: PositiveInt | None = None
    """None: `train.micro_batch`. Small pictures leave room for larger ones."""


class Train(Section):
    steps: PositiveInt = 1000
    """Optimizer steps of the whole run, of `global_batch` samples each. Phases with other batches take more or fewer
    steps over the same samples."""
    phases: Annotated[list[Phase], BeforeValidator(as_list)] = []
    """Parts of the run with settings of their own, one after another; what they leave runs by `model.image_size` and
    the batch below. The learning rate, warm-up too, goes by samples seen, whatever the batches; evaluation and export
    are at `model.image_size`."""
    global_batch: PositiveInt = 1024
    """Samples of one optimizer step, over all ranks and accumulated micro-batches."""
    micro_batch: PositiveInt | None = None
    """Samples that one rank takes through the model at once; None: as many as fall to it, no accumulation."""
    cached_micro_batches: Annotated[int, Field(ge=2)] | None = None
    """So many micro-batches share one loss, each pair among all of theirs, in the memory of one (GradCache, arXiv
    2101.06983); costs a second forward pass. A divisor of the micro-batches of a step. None: a loss for each."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the fp32 weights, kept sharded; None: no average."""
    seed: int = 0
    deterministic: bool = False
    """Deterministic algorithms only (slower on GPUs); an operation without one is an error that names it."""
    threads: PositiveInt | None = None
    """CPU threads a rank; None: this machine's cores divided by its ranks when training on CPU."""


class Parallel(Section):
    sync_batch_norm: bool = True
    """BatchNorm statistics over all data-parallel ranks instead of one rank's micro-batch."""
    pipeline: PositiveInt = 1
    """Stages that the model is cut into, one behind the other. Each has world size / pipeline data-parallel ranks."""
    schedule: Literal["1f1b", "gpipe", "interleaved"] = "1f1b"
    """Order of a pipeline's work: `1f1b` goes back with a micro-batch as soon as it can, and so holds at most
    `pipeline` of them; `gpipe` goes forward with all first; `interleaved` is 1f1b with `chunks` pieces of the model a
    rank, for less waiting and more messages."""
    chunks: PositiveInt = 1
    """Pieces of the model that each stage's ranks hold: rank r those numbered r, r + pipeline, ..."""
    cut: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Links of the model's chain in each piece, in order, as `intern-trainer plan` prints them. None: balanced by the
    cost model."""
    text: Literal["auto", "first", "last"] = "auto"
    """Where the text tower stands in a pipeline's chain: before the image tower or behind it; `auto`: what balances
    better."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Blocks that keep their input alone and are computed once more in the backward pass: memory for time, the same
    numbers. `full`: all blocks of both towers. `selective`: those with depthwise convolutions and no attention (of
    MetaNet the wide early ones), which free most memory for their time."""
    compile: Literal["none", "block"] = "none"
    """`block`: every block of both towers by torch.compile, each by itself, in training; needs a C++ compiler on CPU,
    and takes minutes at the start. Not with ZeRO-3 and not with `model.text.pack`."""


class Checkpoint(Section):
    every: PositiveInt = 1000
    """Steps between checkpoints. One is also written at the end and when a signal asks the run to stop."""
    keep_last: PositiveInt = 3
    keep_best: Annotated[int, Field(ge=0)] = 1
    best_metric: str = "retrieval/image_to_text_R@5"
    """Evaluation result, larger is better, by which `keep_best` checkpoints are chosen."""
    background: Literal["auto", "always", "never"] = "auto"
    """Whether training goes on while a checkpoint is written, from a copy of the state in host memory. `auto`: where
    that copy leaves a tenth of the memory of each machine free. The last save of a run is always waited for."""


class ZeroShot(Section):
    """Zero-shot classification of a labelled set."""

    data: str
    """`embedded:validation|test` (the 20 categories), or an ImageFolder: one sub-folder of pictures a class."""
    name: str = "zero_shot"
    templates: Literal["openai_imagenet", "simple", "none"] = "openai_imagenet"
    """Prompt templates, from open_clip: 80, 7, or the bare class name."""


class Retrieval(Section):
    """Image-text retrieval among all pairs of a set, both ways."""

    data: Sources
    language: str | None = None
    """Of the captions; None: the first of `data.languages` that a sample has."""
    name: str = "retrieval"


class Benchmark(Section):
    """A set of evaluations."""

    zero_shot: Annotated[list[ZeroShot], BeforeValidator(as_list)] = []
    retrieval: Annotated[list[Retrieval], BeforeValidator(as_list)] = []


def _embedded(split: str) -> Benchmark:
    return Benchmark(
        zero_shot=[ZeroShot(data=f"embedded:{split}")],
        retrieval=[Retrieval(data=[Source(location=[f"embedded:{split}"])])],
    )


class Evaluate(Section):
    every: PositiveInt | None = None
    """Steps between evaluations on `validation` in training; None: only at the end."""
    batch: PositiveInt = 64
    """Pictures or texts that one rank takes through a tower at once."""
    validation: Benchmark = _embedded("validation")
    """What training is judged by while it runs; chooses the best checkpoint."""
    test: Benchmark = _embedded("test")
    """What `intern-trainer eval` and the report show; never used to choose anything."""


class Profile(Section):
    first: PositiveInt
    last: PositiveInt
    """Steps first..last (both included) are traced into RUN/profile/."""


class Wandb(Section):
    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class Log(Section):
    every: PositiveInt = 10
    """Steps between lines in the log, the JSONL file and TensorBoard."""
    wandb: Wandb | None = None
    profile: Profile | None = None
    plan: Literal["auto", "full", "state"] = "auto"
    """What the memory after the first step is compared with in the log: `full`, the plan's training state and peak,
    which takes a pass on fake tensors before the engine is built (2 to 30 seconds); `state`, the formulae alone, which
    take none. `auto`: full on a GPU."""


class Init(Section):
    from_: str | None = Field(default=None, alias="from")
    """Starting weights: a RUN folder (its newest checkpoint), one checkpoint, an exported HF folder, or an open_clip or
    timm weights file (safetensors)."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of a run to start from; raw where it keeps no average."""


class Run(Section):
    dir: Path | None = None
    """Folder of the run; None: runs/<recipe>. The same command goes on from the newest good checkpoint in it."""
    resume: bool = True
    """False: refuse to go on in a folder that already holds a checkpoint."""


class Config(Section):
    """One run, complete. Frozen; written to RUN/config.yaml."""

    task: Literal["contrastive", "local"] = "contrastive"
    """`contrastive`: pictures and captions. `local`: a second phase after it, see `local`."""
    run: Run = Run()
    init: Init = Init()
    model: Model = Model()
    loss: Loss = Loss()
    local: Local = Local()
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    guard: Guard = Guard()
    log: Log = Log()
    ds: dict[str, Any] = {}
    """The user's ds_config as read from `--ds_config` (empty: ZeRO stage 0). `config.ds.effective` makes the one that
    DeepSpeed gets."""
