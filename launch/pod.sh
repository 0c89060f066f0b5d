#!/usr/bin/env bash
# Starts launch/main.py with the same flags on every host of a run, and waits for all of them.
#
#   launch/pod.sh hosts HOST0,HOST1,... --config configs/sid_cifar10.py --workdir /shared/sid_cifar10
#   launch/pod.sh tpu NAME ZONE         --config configs/sid_cifar10.py --workdir /shared/sid_cifar10
#
# `hosts` reaches each host by ssh, the first one coordinates; `tpu` reaches all workers of a Cloud
# TPU slice by gcloud. Every host needs this folder at the same path with the package installed, the
# same data, and a workdir that all of them see. Environment: PYTHON (default python), PORT of the
# coordinator (default 12355).
set -euo pipefail

folder=$(cd "$(dirname "$0")/.." && pwd)
kind=${1:?"hosts or tpu; see the head of $0"}
remote() { # the remote command line, with every flag quoted
    printf 'cd %q && exec %q launch/main.py' "$folder" "${PYTHON:-python}"
    printf ' %q' "$@"
}

case $kind in
tpu)
    name=$2 zone=$3
    shift 3
    exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$(remote "$@")"
    ;;
hosts)
    IFS=, read -ra hosts <<<"$2"
    shift 2
    processes=()
    for index in "${!hosts[@]}"; do
        settings="JAX_COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-12355}"
        settings+=" JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$index"
        ssh -n "${hosts[$index]}" "export $settings && $(remote "$@")" &
        processes+=($!)
    done
    status=0
    for process in "${processes[@]}"; do
        wait "$process" || status=$? # a host that fails ends the others through jax's coordinator
    done
    exit $status
    ;;
*)
    echo "$0: first argument is hosts or tpu; got $kind." >&2
    exit 2
    ;;
esac
