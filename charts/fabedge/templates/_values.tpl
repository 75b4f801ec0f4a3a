{{/*
The values of both shapes as one. JSON text is what these templates hand to each other, since a template can return
nothing but text.
*/}}

{{/* The value at a path with dots, null where there is none. Takes values and path. */}}
{{- define "fabedge.at" -}}
{{- $here := index . 0 -}}
{{- range splitList "." (index . 1) -}}
{{- if kindIs "map" $here -}}
{{- $here = get $here . -}}
{{- else -}}
{{- $here = "" -}}
{{- end -}}
{{- end -}}
{{- if or (kindIs "invalid" $here) (has (toJson $here) (list "\"\"" "[]" "{}")) -}}null{{- else -}}{{- toJson $here -}}{{- end -}}
{{- end -}}

{{/* The value that is given at one of two paths. Takes values, the older path and the newer path. */}}
{{- define "fabedge.either" -}}
{{- $old := include "fabedge.at" (list (index . 0) (index . 1)) -}}
{{- $new := include "fabedge.at" (list (index . 0) (index . 2)) -}}
{{- if eq $old "null" -}}
{{- $new -}}
{{- else if or (eq $new "null") (eq (trimAll "\"" $old) (trimAll "\"" $new)) -}}
{{- $old -}}
{{- else -}}
{{- fail (printf "%s is %s and %s is %s, but they are two names of one value: keep one of them" (index . 1) $old (index . 2) $new) -}}
{{- end -}}
{{- end -}}

{{/* Everything that can be given in two shapes, and what goes with it, under the names of the newer shape. */}}
{{- define "fabedge.cluster" -}}
{{- $values := .Values -}}
{{- $found := dict -}}
{{- range $name, $old := dict
    "name" "operator.cluster.name"
    "role" "operator.cluster.role"
    "edgePodCIDR" "operator.edgePodCIDR"
    "connectorPublicAddresses" "operator.connectorPublicAddresses"
    "serviceClusterIPRange" "operator.serviceClusterIPRanges"
    "operatorAPIServer" "operator.hostOperatorAPIServer"
    "initToken" "operator.initToken"
    "edgeLabels" "operator.edgeLabels" -}}
{{- $value := include "fabedge.either" (list $values $old (printf "cluster.%s" $name)) -}}
{{- $_ := set $found $name (printf "{\"v\":%s}" $value | fromJson).v -}}
{{- end -}}
{{- range $name := list "cniType" "edgePodCIDR6" "edgeCIDRMaskSize" "edgeCIDRMaskSize6" "connectorPublicPort"
    "connectorNodeAddresses" "clusterCIDR" "connectorLabels" "edgeToEdge" "operatorCAHash" -}}
{{- $value := include "fabedge.at" (list $values (printf "cluster.%s" $name)) -}}
{{- $_ := set $found $name (printf "{\"v\":%s}" $value | fromJson).v -}}
{{- end -}}
{{- $port := include "fabedge.either" (list $values "operator.operatorAPIServer.nodePort" "operator.service.nodePort") -}}
{{- $_ := set $found "nodePort" (printf "{\"v\":%s}" $port | fromJson).v -}}
{{- $masquerade := include "fabedge.either" (list $values "operator.masqOutgoing" "agent.args.MASQ_OUTGOING") -}}
{{- $_ := set $found "masqOutgoing" (ne (trimAll "\"" $masquerade) "false") -}}
{{- $_ := set $found "role" (default "host" $found.role) -}}
{{- $_ := set $found "edgeLabels" (default (list "node-role.kubernetes.io/edge") $found.edgeLabels) -}}
{{- $_ := set $found "connectorLabels" (default (list "node-role.kubernetes.io/connector") $found.connectorLabels) -}}
{{- $listen := default dict (default dict .Values.operator.operatorAPIServer).listenAddress -}}
{{- $_ := set $found "apiAddress" (default "0.0.0.0" $listen.address) -}}
{{- $_ := set $found "apiPort" (default 3030 $listen.port) -}}
{{- $found | toJson -}}
{{- end -}}

{{/* Go's durations as seconds. */}}
{{- define "fabedge.seconds" -}}
{{- $hours := regexFind "[0-9]+h" . | trimSuffix "h" | default "0" | int -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | default "0" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | default "0" | int -}}
{{- add (mul $hours 3600) (mul $minutes 60) $seconds -}}
{{- end -}}

{{/* The operator's settings, a document of the kind Settings. */}}
{{- define "fabedge.settings" -}}
{{- $c := include "fabedge.cluster" . | fromJson -}}
{{- $spec := pick $c "name" "role" "cniType" "edgePodCIDR" "edgePodCIDR6" "edgeCIDRMaskSize" "edgeCIDRMaskSize6"
    "connectorPublicAddresses" "connectorPublicPort" "connectorNodeAddresses" "serviceClusterIPRange" "clusterCIDR"
    "edgeLabels" "connectorLabels" "edgeToEdge" "operatorAPIServer" "operatorCAHash" -}}
{{- if eq $c.role "host" -}}
{{- $_ := set $spec "apiListen" (printf "%s:%v" (ternary (printf "[%s]" $c.apiAddress) $c.apiAddress (contains ":" $c.apiAddress)) $c.apiPort) -}}
{{- else -}}
{{- $_ := set $spec "initTokenFile" "/etc/fabedge/init-token/token" -}}
{{- end -}}
{{- $pools := include "fabedge.at" (list .Values "operator.autoKeepIPPools") -}}
{{- if ne $pools "null" -}}
{{- $_ := set $spec "autoKeepIPPools" (eq $pools "true") -}}
{{- end -}}
{{- range $name, $value := $spec -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $spec $name -}}
{{- end -}}
{{- end -}}
apiVersion: fabedge.io/v1alpha1
kind: Settings
metadata:
  name: {{ $c.name }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{- end -}}
