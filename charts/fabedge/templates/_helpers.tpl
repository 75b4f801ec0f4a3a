{{/* An image. Takes the root and the image's values. */}}
{{- define "fabedge.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* Labels of an object. Takes the root and the component's name. */}}
{{- define "fabedge.labels" -}}
{{- $root := index . 0 -}}
{{ include "fabedge.selector" . }}
app.kubernetes.io/name: fabedge
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* Labels of a pod: those that no upgrade changes, for each change replaces the pod. Takes the same. */}}
{{- define "fabedge.podLabels" -}}
{{ include "fabedge.selector" . }}
app.kubernetes.io/name: fabedge
{{- end -}}

{{/* What selects a component's pods. Takes the root and the component's name. */}}
{{- define "fabedge.selector" -}}
fabedge.io/app: {{ index . 1 }}
{{- end -}}

{{/* A term of a node affinity as JSON. Takes a label (key, key= or key=value) and whether it must not match. */}}
{{- define "fabedge.expression" -}}
{{- $parts := regexSplit "=" (index . 0) 2 -}}
{{- if gt (len $parts) 1 -}}
{{- dict "key" (index $parts 0) "operator" (ternary "NotIn" "In" (index . 1)) "values" (list (index $parts 1)) | toJson -}}
{{- else -}}
{{- dict "key" (index $parts 0) "operator" (ternary "DoesNotExist" "Exists" (index . 1)) | toJson -}}
{{- end -}}
{{- end -}}

{{/*
An affinity of our own and the user's. Takes our terms and the user's affinity. Terms are alternatives, so both hold
where each term of ours is joined to each of the user's.
*/}}
{{- define "fabedge.affinity" -}}
{{- $affinity := deepCopy (index . 1) -}}
{{- $node := default dict $affinity.nodeAffinity -}}
{{- $required := default dict $node.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $theirs := default (list dict) $required.nodeSelectorTerms -}}
{{- $terms := list -}}
{{- range $own := index . 0 -}}
{{- range $their := $theirs -}}
{{- $expressions := concat $own.matchExpressions (default list $their.matchExpressions) -}}
{{- $terms = append $terms (merge (dict "matchExpressions" $expressions) $their) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- toYaml $affinity -}}
{{- end -}}

{{/* Nodes of which all connector labels match. Takes the labels and the user's affinity. */}}
{{- define "fabedge.onConnectors" -}}
{{- $all := list -}}
{{- range index . 0 -}}
{{- $all = append $all (include "fabedge.expression" (list . false) | fromJson) -}}
{{- end -}}
{{- include "fabedge.affinity" (list (list (dict "matchExpressions" $all)) (index . 1)) -}}
{{- end -}}

{{/* Nodes of which some edge label does not match: an edge is a node of which all do. */}}
{{- define "fabedge.offEdges" -}}
{{- $terms := list -}}
{{- range index . 0 -}}
{{- $terms = append $terms (dict "matchExpressions" (list (include "fabedge.expression" (list . true) | fromJson))) -}}
{{- end -}}
{{- include "fabedge.affinity" (list $terms (index . 1)) -}}
{{- end -}}

{{/* Neither edges nor connectors. Takes edge labels, connector labels and the user's affinity. */}}
{{- define "fabedge.offEdgesAndConnectors" -}}
{{- $connectors := index . 1 -}}
{{- $terms := list -}}
{{- range $edge := index . 0 -}}
{{- range $connector := $connectors -}}
{{- $both := list (include "fabedge.expression" (list $edge true) | fromJson) (include "fabedge.expression" (list $connector true) | fromJson) -}}
{{- $terms = append $terms (dict "matchExpressions" $both) -}}
{{- end -}}
{{- end -}}
{{- include "fabedge.affinity" (list $terms (index . 2)) -}}
{{- end -}}

{{/*
Everything that an agent's pod has whatever its role: takes the root, the role and the seconds between two passes.
*/}}
{{- define "fabedge.agent" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $args := $root.Values.agent.args -}}
{{- $metrics := default "127.0.0.1:20306" $args.METRICS_LISTEN -}}
{{- $port := regexFind "[0-9]+$" $metrics -}}
{{- $host := trimSuffix (printf ":%s" $port) $metrics | trimPrefix "[" | trimSuffix "]" -}}
{{- $host = get (dict "0.0.0.0" "127.0.0.1" "::" "::1") $host | default $host -}}
{{ include "fabedge.image" (list $root $root.Values.agent.image) }}
command: [fabedge-agent]
args:
- {{ $role }}
{{- if ne $role "edge" }}
- --config-map=$(NAMESPACE)/{{ get (dict "connector" "connector-config" "cloud" "fabedge-cloud-agent-config") $role }}
{{- end }}
{{- with $args.LOG }}
- {{ printf "--log=%s" . | quote }}
{{- end }}
{{- with $args.TUNNEL }}
- --tunnel={{ . }}
{{- end }}
{{- $switches := dict "fast-path" "FAST_PATH" }}
{{- if eq $role "connector" }}
{{- $_ := set $switches "spread-esp" "SPREAD_ESP" }}
{{- end }}
{{- range $option, $name := $switches }}
{{- $value := include "fabedge.at" (list $root.Values (printf "agent.args.%s" $name)) | trimAll "\"" }}
{{- if ne $value "null" }}
- --{{ $option }}={{ get (dict "true" "on" "false" "off") $value | default $value }}
{{- end }}
{{- end }}
{{- with index . 2 }}
- --resync={{ . }}
{{- end }}
- {{ printf "--metrics-listen=%s" $metrics | quote }}
{{- if eq $role "edge" }}
- --masq-outgoing={{ (include "fabedge.cluster" $root | fromJson).masqOutgoing }}
{{- end }}
{{- if ne $role "cloud" }}
- --crl=/etc/swanctl/x509crl/ca.crl
{{- end }}
{{- if ne $role "edge" }}
env:
- name: NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}
securityContext:
  # What it writes is on volumes.
  readOnlyRootFilesystem: true
  {{- if $root.Values.agent.privileged }}
  privileged: true
  {{- else }}
  allowPrivilegeEscalation: false
  # SYS_ADMIN is who may see which eBPF programs hang on a device, and make a container's /proc/sys writable; kernels
  # before 5.8 and older container runtimes know no BPF and no PERFMON. NET_RAW is for iptables-legacy, DAC_OVERRIDE for
  # folders of CNI configurations that are not root's.
  capabilities:
    drop: [ALL]
    add: [DAC_OVERRIDE, NET_ADMIN, NET_RAW, SYS_ADMIN]
  # As a privileged container has it. Without SELinux nobody looks at it.
  seLinuxOptions:
    type: spc_t
  {{- end }}
readinessProbe:
  httpGet:
    host: {{ $host | quote }}
    port: {{ $port }}
    path: /readyz
  periodSeconds: 3
livenessProbe:
  httpGet:
    host: {{ $host | quote }}
    port: {{ $port }}
    path: /healthz
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/*
Annotations of an agent's pod. Takes the root and the container's name. AppArmor's usual profile for containers keeps
everybody from /proc/sys and /sys/fs/bpf.
*/}}
{{- define "fabedge.agentAnnotations" -}}
{{- if not (index . 0).Values.agent.privileged -}}
annotations:
  container.apparmor.security.beta.kubernetes.io/{{ index . 1 }}: unconfined
{{- end -}}
{{- end -}}

{{/* Mounts that every agent has: of its state, of what the kernel and other programs of the node share. */}}
{{- define "fabedge.agentMounts" -}}
- name: state
  mountPath: /var/lib/fabedge
- name: run
  mountPath: /run
- name: xtables-lock
  mountPath: /run/xtables.lock
- name: bpffs
  mountPath: /sys/fs/bpf
  {{- if .Values.agent.privileged }}
  mountPropagation: Bidirectional
  {{- end }}
- name: cni-results
  mountPath: /var/lib/cni
  readOnly: true
- name: modules
  mountPath: /lib/modules
  readOnly: true
{{- end -}}

{{/* The volumes of these mounts, except for state, which is different for each role. */}}
{{- define "fabedge.agentVolumes" -}}
# Holds charon's socket, which two containers share.
- name: run
  emptyDir:
    medium: Memory
- name: xtables-lock
  hostPath:
    path: /run/xtables.lock
    type: FileOrCreate
- name: bpffs
  hostPath:
    path: /sys/fs/bpf
    type: DirectoryOrCreate
- name: cni-results
  hostPath:
    path: /var/lib/cni
    type: DirectoryOrCreate
- name: modules
  hostPath:
    path: /lib/modules
    type: DirectoryOrCreate
{{- end -}}

{{/* Where an agent that has tunnels finds its key, certificates and revocation lists, as strongSwan's own tools expect them. */}}
{{- define "fabedge.tlsMount" -}}
- name: tls
  mountPath: /etc/ipsec.d
  readOnly: true
- name: crl
  mountPath: /etc/swanctl/x509crl
  readOnly: true
{{- end -}}

{{/* Takes the Secret's name. No subPath, which would keep renewed certificates out. */}}
{{- define "fabedge.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ . }}
    # 0400
    defaultMode: 256
    items:
    - key: ca.crt
      path: cacerts/ca.crt
    - key: tls.crt
      path: certs/tls.crt
    - key: tls.key
      path: private/tls.key
# What the authority has revoked. A volume of its own, for the whole of it may be missing.
- name: crl
  secret:
    secretName: {{ . }}
    optional: true
    defaultMode: 256
    items:
    - key: ca.crl
      path: ca.crl
{{- end -}}

{{/* The container strongswan. Connections, keys and certificates come from the agent by charon's socket. */}}
{{- define "fabedge.strongswan" -}}
- name: strongswan
  {{- include "fabedge.image" (list . .Values.strongswan.image) | nindent 2 }}
  {{- if eq .Values.strongswan.tunnel "libipsec" }}
  env:
  - name: STRONGSWAN_CONF
    value: /etc/strongswan-libipsec.conf
  {{- end }}
  securityContext:
    readOnlyRootFilesystem: true
    {{- if eq .Values.strongswan.tunnel "libipsec" }}
    # For /dev/net/tun, a device that container runtimes do not give to others.
    privileged: true
    {{- else }}
    allowPrivilegeEscalation: false
    capabilities:
      drop: [ALL]
      add: [NET_ADMIN, NET_BIND_SERVICE]
    {{- end }}
  {{- with .Values.strongswan.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
  - name: run
    mountPath: /run
{{- end -}}

{{/*
An account that may read one ConfigMap by its name and nothing else. Takes the root, the account's name, the component
and the ConfigMap's name.
*/}}
{{- define "fabedge.reader" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $labels := include "fabedge.labels" (list $root (index . 2)) -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
rules:
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [{{ index . 3 }}]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
- kind: ServiceAccount
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
{{- end -}}

{{/* Where and as whom pods of the operator's image run. */}}
{{- define "fabedge.operatorPod" -}}
priorityClassName: system-cluster-critical
affinity:
  {{- include "fabedge.offEdges" (list (include "fabedge.cluster" . | fromJson).edgeLabels .Values.operator.affinity) | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* The rights that their containers have: none. */}}
{{- define "fabedge.operatorSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/*
Annotations of what exists only while `helm uninstall` runs. Takes the weight: who is to be bound comes before the
bindings, these before the Job.
*/}}
{{- define "fabedge.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
