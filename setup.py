"""Packaging: three source roots, each with one uniquely named package (`docs/architecture.md` says why)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOTS = {"kernels": "intern_kernels", "model_zoo": "intern_zoo", "trainer": "intern_trainer"}
HERE = Path(__file__).parent

packages = [p for root, name in ROOTS.items() for p in find_packages(root, include=[name, f"{name}.*"])]
version = next(
    line.split('"')[1]
    for line in (HERE / "trainer/intern_trainer/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="intern-trainer",
    version=version,
    description="INTERN: a trainer for general vision models, from image-text pretraining to adaptation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages,
    package_dir={name: f"{root}/{name}" for root, name in ROOTS.items()},
    package_data={
        "intern_trainer": [
            "data/embedded/*.md",
            "data/embedded/shards/*.tar",
            "report/*.html",
            "report/*.css",
            "config/*.json",
        ],
        "intern_zoo": ["*/README.md"],
        "intern_kernels": ["*/README.md"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "deepspeed==0.19.8",  # intern_trainer.engine touches its internals; tests guard that: move both together
        "transformers>=5.10.1",  # older ones take a folder called `kernels` for a package of theirs
        "accelerate>=1.10",
        "open_clip_torch>=3.3",
        "timm>=1.0.20",
        "tokenizers>=0.22",
        "ftfy>=6",  # the export takes its tables; open_clip cleans captions with it
        "safetensors>=0.6",
        "pydantic>=2.10",
        "pyyaml>=6",
        "numpy>=2",
        "pillow>=11",
        "fsspec[http]>=2025.3",
        "rich>=13",
        "tensorboard>=2.18",
        "jinja2>=3.1",
        "psutil>=6",
        "torchmetrics>=1.5",  # probes' figures
        "faster-coco-eval>=1.6",  # COCO's average precision for torchmetrics
    ],
    extras_require={
        "s3": ["s3fs"],
        "gcs": ["gcsfs"],
        "wandb": ["wandb"],
        "jpeg": ["simplejpeg>=1.8"],  # decodes training pictures faster than Pillow
        "data": ["pyarrow>=18"],  # Parquet tables in `intern-trainer data shard`
        # NVIDIA's apex is not on PyPI (PyPI's `apex` is another project), so no extra can name it; docs/apex.md builds
        # it from source
        "apex": [],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "ruff>=0.14",
            "mypy>=1.18",
            "import-linter>=2.5",
            "types-PyYAML",
            "types-psutil",
            "pyarrow>=18",
            "simplejpeg>=1.8",
            "s3fs",
            "moto[s3]>=5",  # an S3 server for the tests, with the next two
            "flask>=3",
            "flask-cors>=5",
            "webdataset>=1.0",  # the peers in `python -m benchmarks loader`: this, open_clip's trainer and
            "litdata>=0.2.70",
            "pandas>=2.2",  # open_clip's trainer, the peer in `python -m benchmarks quality`, imports it
        ],
    },
    entry_points={"console_scripts": ["intern-trainer=intern_trainer.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
