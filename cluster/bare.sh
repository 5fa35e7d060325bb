#!/bin/sh
# A Ray cluster of a few machines, without Kubernetes and without a cloud. The same version of `dpr` is on each.
#
#   sh bare.sh head 10.0.0.1              on one machine, which has this address
#   sh bare.sh worker 10.0.0.1 10.0.0.2   on each other one: the head's address, and its own
#
# It runs in the foreground; all that it started ends with it (Ctrl-C, SIGTERM). Further arguments are passed to
# `ray start`. Between the machines, TCP ports 6379 to 6385 and 10002 to 19999 must be open; close them to all other machines.
set -eu

TOKEN="$HOME/.ray/auth_token"
PORTS="--node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
--dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 --metrics-export-port=6385
--min-worker-port=10002 --max-worker-port=19999"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

fail() {
    echo "error: $1" >&2
    exit 2
}

command -v ray >/dev/null || fail "there is no ray on the PATH; activate the environment that dpr is installed in"

case "${1-}" in
head)
    [ $# -ge 2 ] || fail "the address of this machine is missing; call it as: bare.sh head ADDRESS"
    address=$2
    shift 2
    [ -s "$TOKEN" ] || ray get-auth-token --generate >/dev/null
    chmod 600 "$TOKEN"
    echo "copy $TOKEN to the same place on the other machines, then start there: bare.sh worker $address ADDRESS"
    # shellcheck disable=SC2086  # one word each
    exec ray start --block --head --node-ip-address="$address" --port=6379 \
        --dashboard-host=127.0.0.1 --dashboard-port=8265 $PORTS "$@"
    ;;
worker)
    [ $# -ge 3 ] || fail "an address is missing; call it as: bare.sh worker HEAD_ADDRESS ADDRESS"
    head=$2 address=$3
    shift 3
    [ -s "$TOKEN" ] || fail "there is no $TOKEN; copy it from the head, whose first start makes it"
    case "$head" in *:*) ;; *) head="$head:6379" ;; esac
    # shellcheck disable=SC2086  # one word each
    exec ray start --block --address="$head" --node-ip-address="$address" $PORTS "$@"
    ;;
*)
    fail "'${1-}' is neither head nor worker; call it as: bare.sh head ADDRESS, or bare.sh worker HEAD_ADDRESS ADDRESS"
    ;;
esac
