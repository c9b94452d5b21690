#!/usr/bin/env bash
# What `make train` runs: stage 1 on the embedded data with DeepSpeed on 2 CPU ranks, evaluation, report, HF export; then what to try next.
set -euo pipefail

port=$("$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
command=("$BIN/deepspeed" --num_gpus 2 --master_port "$port" trainer/run.py --ds_config configs/ds/zero2.json run.dir="$RUN" "$@")
printf '+ %s\n' "${command[*]}"
"${command[@]}"
rm -rf "$RUN/hf"  # of an earlier, shorter run: an export never overwrites
"$BIN/python" trainer/run.py export "$RUN" --to "$RUN/hf"

cat <<END

Everything is in $RUN:
  report.html       curves, evaluation, pictures with their captions: open it in a browser
  evaluation.json   the figures; checkpoints/ the weights and all that a resume needs
  hf/               the model for transformers: AutoModel.from_pretrained("$RUN/hf", trust_remote_code=True)

Try next:
  make train RUN=$RUN                                           goes on where it stopped (here: finds it finished)
  $BIN/deepspeed --num_gpus 2 trainer/run.py --ds_config configs/ds/zero3.json run.dir=runs/zero3
  $BIN/python trainer/run.py run.dir=runs/mine model.image=uninet_b0 optim.lr=5e-4
  $BIN/python trainer/run.py run.dir=runs/own data.train='/data/shards/{0000..0099}.tar'
  $BIN/intern-trainer eval $RUN --weights raw
  $BIN/intern-trainer --help
END
