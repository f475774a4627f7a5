#!/usr/bin/env bash
# Runs a suite with Slurm, divided into parts (vm-test --shard). Call it in the project, on a machine that has sbatch:
# slurm.sh [SUITE]
#
# 1. An array job: each task runs one part, which is some of the suite's packages, in a clone of the VM on its node.
# 2. A second job, which runs after all tasks have ended, also if they failed. It merges their results into report.xml.
#    This script ends with the exit code of that job, which is the verdict: 0 only if the results of all parts are there
#    and every test that ran passed.
#
# Each task deletes its clone when it ends, also after scancel or a time limit. After a crash of the node the clone stays:
# vm-ctl list shows it, vm-ctl destroy deletes it.
#
# On each node, run vm-auto-install and then vm-ctl start once. The start takes the snapshot clean with its RAM, from which
# the clones start without a boot. VM_DIR must be on the node's own disk. The project must be in a directory that all nodes
# share; the results are written there, too.
#
# What to change:
suite=${1:-unit}
shards=4   # how many parts, each run by a task
at_once=2  # how many of them run at the same time
resources=(--cpus-per-task=2 --mem=3G --time=2:00:00) # --mem: VM_MEMORY plus half a gigabyte; add --partition, --account
vm_ctl=() vm_test=()
eval "vm_ctl=(${VM_CTL_CMD:-jbang vm-ctl})" # with quotes as in a shell: a path may hold blanks
eval "vm_test=(${VM_TESTER:-jbang vm-test})"

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
