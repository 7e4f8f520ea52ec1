# The cluster for the stories of kube::real. Sourced by run.sh. RDEV_TEST_KUBECONFIG names one that is there;
# RDEV_TEST_CLUSTER_UP a script that brings one up, says `export KUBECONFIG=…`, and has a `down` beside it.
# A machine on which there can be none is no failure of the tests, but nobody is to overlook it.

cluster_ours=
cluster_skipped=
cluster_state=${RDEV_CLUSTER_STATE:-/var/lib/rdev-cluster}

# cluster_up LOG: RDEV_TEST_KUBECONFIG, or why not in $cluster_skipped.
cluster_up() {
    test -z "${RDEV_TEST_KUBECONFIG:-}" || return 0
    if test -z "${RDEV_TEST_CLUSTER_UP:-}"; then
        cluster_skipped="set RDEV_TEST_KUBECONFIG to the kubeconfig of a cluster, or RDEV_TEST_CLUSTER_UP to a script that brings one up"
        return 0
    fi
    cluster_runs || cluster_ours=yes
    test -e "$cluster_state" || cluster_ours=new
    # The first time it is built: minutes.
    if cluster_said=$(timeout 900 "$RDEV_TEST_CLUSTER_UP" 2>"$1"); then
        RDEV_TEST_KUBECONFIG=$(eval "$cluster_said" && echo "${KUBECONFIG:-}")
        export RDEV_TEST_KUBECONFIG
        test -n "$RDEV_TEST_KUBECONFIG" || cluster_skipped="$RDEV_TEST_CLUSTER_UP named no kubeconfig"
    else
        cluster_skipped="$RDEV_TEST_CLUSTER_UP ended with $?; it said:
$(tail -n 8 "$1")"
    fi
}

# Whoever brought it up takes it down.
cluster_down() {
    cluster_script="$(dirname "${RDEV_TEST_CLUSTER_UP:-.}")/down"
    case $cluster_ours in
    new) "$cluster_script" --wipe ;;
    yes) "$cluster_script" ;;
    esac >/dev/null 2>&1 || true
    cluster_ours=
}

cluster_runs() {
    { read -r cluster_pid cluster_rest <"$cluster_state/pids/kube-apiserver"; } 2>/dev/null && kill -0 "$cluster_pid" 2>/dev/null
}

cluster_say_skipped() {
    test -z "$cluster_skipped" || printf 'SKIPPED: the stories of kube::real, which need a cluster: %s\n' "$cluster_skipped" >&2
}
