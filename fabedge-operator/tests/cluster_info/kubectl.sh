#!/bin/sh
# What kubectl answers to the script's questions, out of the folder $ANSWERS.
[ "$1 $2 $3" = "--request-timeout=10s -n kube-system" ] || exit 9
shift 3
case "$1 $2" in
"get configmap")
    key=$(echo "${5#jsonpath=}" | tr -d '{}\\')
    exec cat "$ANSWERS/configmap.$3.${key#.data.}"
    ;;
"get configmaps") exec cat "$ANSWERS/configmaps" ;;
"get pods") exec cat "$ANSWERS/pods" ;;
"get service") exec cat "$ANSWERS/service.$3" ;;
esac
echo "unexpected: $*" >&2
exit 9
