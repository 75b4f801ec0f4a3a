#!/bin/sh
# Prints what FabEdge's values need to know of a cluster: where its DNS is, and its prefixes.
#
#   sh get_cluster_info.sh [--root DIR]
#
# Run it on a node of the control plane, where kubectl works. It reads the flags of the control plane in files under
# /etc/kubernetes and in k3s.service (under DIR, if given), asks the API for the rest, and changes nothing. What cannot
# be found is `unknown`, with the reason on stderr, and the exit code is 1. `fabedge-operator cluster-info` prints the
# same.
set -u

root=
while [ $# -gt 0 ]; do
    case $1 in
    --root) [ $# -gt 1 ] || { echo "--root needs a folder" >&2; exit 2; }; root=${2%/}; shift 2 ;;
    *) echo "usage: sh get_cluster_info.sh [--root DIR]" >&2; exit 2 ;;
    esac
done

missing=0

# kubectl in the namespace of the control plane; K3s has one of its own. What does not exist is no error here.
kube() {
    if command -v kubectl >/dev/null 2>&1; then
        kubectl --request-timeout=10s -n kube-system "$@" 2>/dev/null
    elif command -v k3s >/dev/null 2>&1; then
        k3s kubectl --request-timeout=10s -n kube-system "$@" 2>/dev/null
    fi
}

configmap() {
    kube get configmap "$1" -o "jsonpath={.data.$2}"
}

# The words of a command line or of a text that holds one, a line each. Comments, quotes and the marks of YAML's lists
# and of continued lines are none.
words() {
    sed '/^[[:space:]]*#/d' | tr '"[]\\\047' '     ' | tr -s ' \t' '\n\n' | sed -e 's/,*$//' -e '/^-*$/d'
}

# The value of `--flag value` or `--flag=value`; of several, the last one.
flag() {
    words | awk -v flag="$1" '
        wanted { wanted = 0; if ($0 !~ /^-/) value = $0 }
        $0 == flag || $0 == flag "=" { wanted = 1; next }
        index($0, flag "=") == 1 { value = substr($0, length(flag) + 2) }
        END { if (value != "") print value }'
}

# The value of a key of a flat part of YAML.
key() {
    sed -n "s/^[[:space:]]*$1:[[:space:]]*//p" | tr -d "\"'" | sed -n '/./{s/[[:space:]].*//;p;q;}'
}

# A flag in files that may hold those of the API server or the controller manager, never in keys and certificates.
in_files() {
    [ -d "$root/etc/kubernetes" ] || return 0
    find "$root/etc/kubernetes" \( -name pki -o -name ssl \) -prune -o \
        \( -name '*apiserver*' -o -name '*controller-manager*' \) \( -type f -o -type l \) -print |
        while IFS= read -r file; do
            [ -f "$file" ] && flag "$1" <"$file"
        done
}

# A flag of K3s: in its unit, in its configuration, or what it has without.
in_k3s() {
    for unit in etc/systemd/system usr/lib/systemd/system lib/systemd/system; do
        unit=$root/$unit/k3s.service
        [ -f "$unit" ] || continue
        words <"$unit" | tr '\n' ' ' | grep -q 'k3s server ' || continue
        value=$(flag "--$1" <"$unit")
        config=$root/etc/rancher/k3s/config.yaml
        [ -n "$value" ] || [ ! -f "$config" ] || value=$(key "$1" <"$config")
        echo "${value:-$2}"
        return 0
    done
}

# A flag of the pods of a program, as the API shows them.
in_pods() {
    kube get pods -o \
        'jsonpath={range .items[*]}{.metadata.name} {.spec.containers[*].command} {.spec.containers[*].args}{"\n"}{end}' |
        grep -E "^($2)-" | while IFS= read -r line; do
        echo "$line" | flag "$1"
    done
}

# What kubeadm and kube-proxy were told.
in_kubeadm() {
    configmap kubeadm-config ClusterConfiguration | key "$1"
}

in_kube_proxy() {
    configmap kube-proxy 'config\.conf' | key clusterCIDR
}

# Prints a line of the answer: name, value (several lines, if sources contradict each other), why there may be none.
answer() {
    value=$(echo "$2" | sed '/^$/d' | sort -u)
    case $value in
    "") echo "$1: not found: $3" >&2; missing=1; value=unknown ;;
    *"
"*) echo "$1: the sources contradict each other: $(echo "$value" | tr '\n' ' ')" >&2; missing=1; value=unknown ;;
    esac
    printf '%-25s: %s\n' "$1" "$value"
}

# The first of several commands that prints anything.
first() {
    for command in "$@"; do
        found=$(eval "$command")
        if [ -n "$found" ]; then
            echo "$found"
            return 0
        fi
    done
}

cluster_dns() {
    for cache in nodelocaldns node-local-dns; do
        configmap "$cache" Corefile | sed -n 's/^[[:space:]]*bind[[:space:]]\{1,\}//p' | sed -n '1s/[[:space:]].*//;1p'
    done
    for service in kube-dns coredns; do
        kube get service "$service" -o 'jsonpath={.spec.clusterIP}{"\n"}' | grep -v '^None$'
    done
}

cluster_domain() {
    for map in $(kube get configmaps -o name | sed -n 's,^configmap/\(kubelet-config.*\)$,\1,p'); do
        configmap "$map" kubelet | key clusterDomain
    done
    configmap coredns Corefile | sed -n 's/^[[:space:]]*kubernetes[[:space:]]\{1,\}//p' | sed 's/{.*//' | tr -s ' \t' '\n\n' |
        sed -n -e '/\.arpa\.\{0,1\}$/d' -e 's/\.$//' -e '/./{p;q;}'
    in_kubeadm dnsDomain
}

echo "This may take some time. Please wait."
echo

answer clusterDNS "$(cluster_dns | sed -n '/./{p;q;}')" \
    "no bind line in a ConfigMap nodelocaldns or node-local-dns and no Service kube-dns or coredns in kube-system"
answer clusterDomain "$(cluster_domain | sed -n '/./{p;q;}')" \
    "no ConfigMap kubelet-config, coredns or kubeadm-config in kube-system"
nowhere="no flag of the control plane under /etc/kubernetes, no k3s.service, no pod kube-controller-manager or \
kube-apiserver, no ConfigMap kubeadm-config in kube-system"
answer cluster-cidr "$(first 'in_files --cluster-cidr' 'in_k3s cluster-cidr 10.42.0.0/16' \
    'in_pods --cluster-cidr "kube-controller-manager|kube-proxy"' 'in_kubeadm podSubnet' in_kube_proxy)" "$nowhere"
answer service-cluster-ip-range "$(first 'in_files --service-cluster-ip-range' 'in_k3s service-cidr 10.43.0.0/16' \
    'in_pods --service-cluster-ip-range "kube-controller-manager|kube-apiserver"' 'in_kubeadm serviceSubnet')" "$nowhere"
exit "$missing"
