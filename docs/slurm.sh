#!/bin/bash
# One stage on several hosts, as a Slurm array: sbatch --array=1-8 docs/slurm.sh steer llama-33-70b
# A task that is killed or preempted is queued again and continues from its finished chunks.
#SBATCH --job-name=esr
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
set -euo pipefail
stage=$1 model=$2
cd "${SLURM_SUBMIT_DIR:-.}"
export ESR_CACHE="${ESR_CACHE:-$PWD/.cache/esr}" # one folder that all hosts see; else set ESR_CHUNK_STORE=s3://...
"${PYTHON:-.venv/bin/python}" -m esr.pipeline.run "$stage" --model "$model" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --wait "${ESR_SHARD_WAIT:-3600}"
