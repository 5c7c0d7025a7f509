#!/bin/bash
# A job array of (configuration, seed): one task for each run, without Ray. From the folder of the repository:
#   sbatch --array=0-5 docs/slurm/array.sh 3 configs/paper.toml configs/resnet18.toml
# trains two configurations with the seeds 0, 1 and 2: six tasks. The first argument is the number of seeds; the number
# of tasks must be seeds times configurations. What follows "--" goes to every run: ... resnet18.toml -- --epochs 10
#SBATCH --job-name=jaxresnet
#SBATCH --output=slurm-%A_%a.out
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end, the run gets SIGTERM, saves and stops.
#SBATCH --signal=TERM@300
set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-} # srun does not take it from sbatch by itself

seeds=$1
shift
configs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  configs+=("$1")
  shift
done
[ $# -eq 0 ] || shift # the --

task=$SLURM_ARRAY_TASK_ID
if [ "$task" -ge $((seeds * ${#configs[@]})) ]; then
  echo "error: task $task: expected --array=0-$((seeds * ${#configs[@]} - 1))" >&2
  exit 2
fi
config=${configs[$((task / seeds))]}
seed=$((task % seeds))
name=$(basename "$config" .toml)

# The folders are those of `python -m jaxresnet.sweep --workdir runs/sweep`, which then makes the table.
srun .venv/bin/python -m jaxresnet.train --config "$config" --seed "$seed" \
  --workdir "${WORKDIR:-runs/sweep}/$name/seed$seed" "$@"
