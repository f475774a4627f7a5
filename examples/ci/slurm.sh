#!/usr/bin/env bash
# Runs a suite with Slurm, divided into shards. Call it where you would call sbatch, in the project: slurm.sh [SUITE]
#
# 1. An array job: each task runs its share of the suite's packages in a clone of the VM on its node.
# 2. A job that runs after all tasks, whatever became of them, and merges their results into report.xml. Its exit code is
#    the verdict, and that of this script: 0 only if all shards have handed in their results and every test passed.
#
# A task ends with its clone deleted, also after scancel or a time limit. What a crash leaves, vm-ctl list shows.
#
# Each node needs an installed VM that has been started once, so that its clones need not boot: vm-auto-install;
# vm-ctl start. VM_DIR lies on the node's own disk. The project lies where all nodes see it, as the results do.
#
# What to change:
suite=${1:-unit}
shards=4   # how many tasks
at_once=2  # how many of them run at the same time
resources=(--cpus-per-task=2 --mem=3G --time=2:00:00) # --mem: VM_MEMORY and half a gigabyte; add --partition, --account
read -ra vm_ctl <<<"${VM_CTL_CMD:-jbang vm-ctl}"
read -ra vm_test <<<"${VM_TESTER:-jbang vm-test}"

set -euo pipefail
case ${1:-} in
  --shard) # by the array job: --shard SUITE
    results=$SLURM_SUBMIT_DIR/shards-$SLURM_ARRAY_JOB_ID
    clone=${VM_NAME:-dfly-vm}.slurm-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID # two tasks may share a node
    trap 'VM_NAME=$clone "${vm_ctl[@]}" destroy --yes' EXIT
    trap 'exit 143' TERM
    mkdir -p "$results"
    "${vm_ctl[@]}" clone --start "$clone"
    export VM_NAME=$clone
    "${vm_test[@]}" --sync --shard auto --json "$results/shard-$SLURM_ARRAY_TASK_ID.json" "$2"
    ;;
  --merge) # by the second job: --merge ARRAY_JOB
    "${vm_test[@]}" merge "$SLURM_SUBMIT_DIR/shards-$2"/shard-*.json --junit "$SLURM_SUBMIT_DIR/report.xml"
    ;;
  *)
    array=$(sbatch --parsable --array="1-$shards%$at_once" "${resources[@]}" "$0" --shard "$suite")
    array=${array%%;*} # a cluster's name may follow
    echo "array job $array; each task's output: slurm-${array}_N.out" >&2
    code=0
    sbatch --wait --dependency="afterany:$array" --output="slurm-$array-merge.out" "${resources[@]}" "$0" --merge "$array" || code=$?
    cat "slurm-$array-merge.out"
    exit $code
    ;;
esac
