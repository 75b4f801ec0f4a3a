{{/*
What values.schema.json cannot tell: what must be given together, and what this version does not have. A value that
would be without effect is refused by its name, never accepted in silence.
*/}}
{{- define "fabedge.check" -}}
{{- $c := include "fabedge.cluster" . | fromJson -}}
{{- $values := .Values -}}
{{- if not $c.name -}}
{{- fail "cluster.name (in 0.4 operator.cluster.name) is required: one DNS label that no other cluster has" -}}
{{- end -}}
{{- if not $c.connectorPublicAddresses -}}
{{- fail "cluster.connectorPublicAddresses (in 0.4 operator.connectorPublicAddresses) is required: the addresses at which edges reach the connector, that of its node for example" -}}
{{- end -}}

{{- if and (eq (toString $c.cniType) "flannel") (or $c.edgePodCIDR $c.edgePodCIDR6) -}}
{{- fail "cluster.edgePodCIDR (in 0.4 operator.edgePodCIDR) must not be set with Flannel, where each node has its own spec.podCIDRs: remove it" -}}
{{- end -}}
{{- if and (eq (toString $c.cniType) "calico") (not (or $c.edgePodCIDR $c.edgePodCIDR6)) -}}
{{- fail "cluster.edgePodCIDR (in 0.4 operator.edgePodCIDR) is required with Calico, which gives no prefixes to nodes: set 10.10.0.0/16 for example" -}}
{{- end -}}
{{- range $size, $range := dict "edgeCIDRMaskSize" "edgePodCIDR" "edgeCIDRMaskSize6" "edgePodCIDR6" -}}
{{- if and (get $c $size) (not (get $c $range)) -}}
{{- fail (printf "cluster.%s has no effect without cluster.%s: remove it" $size $range) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (toString $c.cniType) "flannel") (ne (include "fabedge.at" (list $values "operator.autoKeepIPPools")) "null") -}}
{{- fail "operator.autoKeepIPPools is for Calico; with Flannel it has no effect: remove it" -}}
{{- end -}}

{{- if eq $c.role "host" -}}
{{- range $name, $old := dict "operatorAPIServer" "operator.hostOperatorAPIServer" "initToken" "operator.initToken" "operatorCAHash" "" -}}
{{- if get $c $name -}}
{{- fail (printf "cluster.%s%s is for the role member; a host registers with nobody: remove it, or set cluster.role to member" $name (ternary "" (printf " (in 0.4 %s)" $old) (eq $old ""))) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- range $name, $old := dict "operatorAPIServer" "operator.hostOperatorAPIServer" "initToken" "operator.initToken" -}}
{{- if not (get $c $name) -}}
{{- fail (printf "cluster.%s (in 0.4 %s) is required with the role member" $name $old) -}}
{{- end -}}
{{- end -}}
{{- range $path := list "operator.service.nodePort" "operator.operatorAPIServer.nodePort" "operator.operatorAPIServer.listenAddress.address" "operator.operatorAPIServer.listenAddress.port" -}}
{{- if ne (include "fabedge.at" (list $values $path)) "null" -}}
{{- fail (printf "%s is for the role host; members have no API of their own: remove it" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $unavailable := dict
    "cluster.region" "regions are not available in this version"
    "cluster.zone" "zones are not available in this version"
    "cluster.connectorAsMediator" "there is no mediator in this version: edges that cannot reach each other are relayed by the connector"
    "agent.args.ENABLE_PROXY" "there is no service proxy on edges in this version: services are reached through the connector"
    "agent.args.ENABLE_DNS" "there is no DNS server on edges in this version"
    "agent.args.DNS_CLUSTER_DOMAIN" "there is no DNS server on edges in this version"
    "agent.args.AUTO_NETWORKING" "routes come from the operator and from nobody on the LAN: put the edges into a Community, with cluster.edgeToEdge direct where they reach each other"
    "agent.args.MULTICAST_TOKEN" "there is no discovery by multicast in this version"
    "agent.args.MULTICAST_ADDRESS" "there is no discovery by multicast in this version"
    "agent.args.MULTICAST_INTERVAL" "there is no discovery by multicast in this version" -}}
{{- range $path, $why := $unavailable -}}
{{- $value := include "fabedge.at" (list $values $path) -}}
{{- if not (has (trimAll "\"" $value) (list "null" "false")) -}}
{{- fail (printf "%s is %s, but %s: remove it" $path $value $why) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $values.agent.args -}}
{{- if not (or (has $name (list "LOG" "FAST_PATH" "TUNNEL" "RESYNC" "METRICS_LISTEN" "SPREAD_ESP" "MASQ_OUTGOING")) (hasKey $unavailable (printf "agent.args.%s" $name))) -}}
{{- fail (printf "agent.args.%s is not an option of this version's agent: it has LOG, FAST_PATH, TUNNEL, RESYNC, METRICS_LISTEN, SPREAD_ESP and MASQ_OUTGOING" $name) -}}
{{- end -}}
{{- end -}}

{{- $period := include "fabedge.seconds" $values.connector.syncPeriod | int -}}
{{- if or (lt $period 1) (gt $period 3600) -}}
{{- fail (printf "connector.syncPeriod is %s, but must be from 1s to 1h" $values.connector.syncPeriod) -}}
{{- end -}}
{{- $patience := include "fabedge.seconds" $values.uninstall.timeout | int -}}
{{- if or (lt $patience 10) (gt $patience 3600) -}}
{{- fail (printf "uninstall.timeout is %s, but must be from 10s to 1h" $values.uninstall.timeout) -}}
{{- end -}}
{{- if gt (int $values.connector.replicas) 1 -}}
{{- fail (printf "connector.replicas is %v, but more than one connector is not available in this version: set 1" $values.connector.replicas) -}}
{{- end -}}
{{- end -}}
