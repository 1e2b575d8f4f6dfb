#!/usr/bin/env bash
# Train, generate and ground on several nodes: sbatch recipes/slurm/run.sh RECIPE [ACCELERATE_CONFIG]
# Prepare the data once before (bigrec-hf prepare --config RECIPE). The nodes share the file system of the run folder.
# Change the lines below to your cluster: nodes, GPUs of a node, time.
#SBATCH --job-name=bigrec-hf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

recipe=${1:?usage: sbatch recipes/slurm/run.sh RECIPE [ACCELERATE_CONFIG]}
config=${2:-accelerate_configs/ddp.yaml}
gpus=${SLURM_GPUS_ON_NODE:?start this with sbatch, with --gpus-per-node}
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))

# one launcher a node; SLURM_PROCID is known inside srun only, hence the inner shell
stage() {
  srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$1" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_PROCID" \
      --num_processes "$2" --main_process_ip "$3" --main_process_port "$4" --rdzv_backend c10d \
      -m "bigrec_hf.$5" --config "$6"
  ' bash "$config" "$((SLURM_NNODES * gpus))" "$first_node" "$((20000 + SLURM_JOB_ID % 20000))" "$1" "$recipe"
}

stage sft
# generating and grounding split the examples, not the model: plain data-parallel whatever the training used
config=accelerate_configs/ddp.yaml
stage generate
stage ground
bigrec-hf score --config "$recipe"
