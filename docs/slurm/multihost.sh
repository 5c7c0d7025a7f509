#!/bin/bash
# One run on several machines: a task for each GPU. From the folder of the repository, which all machines see:
#   sbatch docs/slurm/multihost.sh --config paper --workdir /shared/runs/paper --batch-size 1024
# All arguments go to `jaxresnet.train`. Submit the same command again to continue, also with other --nodes.
#SBATCH --job-name=jaxresnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
# Not --gpus-per-task: it shows each task one GPU, with the number 0, where JAX looks for the task's own number.
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end, all processes get SIGTERM, agree, save once and stop.
#SBATCH --signal=TERM@300
set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-} # srun does not take it from sbatch by itself

srun --kill-on-bad-exit=1 .venv/bin/python -m jaxresnet.train --device cuda --distributed "$@"
