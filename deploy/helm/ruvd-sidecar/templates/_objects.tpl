{{/*
The sidecar's own objects: the ConfigMap of its settings, and the claim of a persistent volume. Include
them once, in a file of their own.
*/}}
{{- define "ruvd-sidecar.objects" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
{{- with $values.settings }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "ruvd-sidecar.configMap" $ }}
  labels:
    {{- include "ruvd-sidecar.labels" $ | nindent 4 }}
data:
  {{- include "ruvd-sidecar.settings" . | nindent 2 }}
{{- end }}
{{- if and $values.state.persistent (not $values.state.existingClaim) }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "ruvd-sidecar.claim" . }}
  labels:
    {{- include "ruvd-sidecar.labels" . | nindent 4 }}
  annotations:
    # The sessions outlive the release.
    helm.sh/resource-policy: keep
spec:
  # One daemon at a time has the store open; a second one exits with code 4. Use a local disk or a block
  # device, not NFS: SQLite's write-ahead log needs shared memory and reliable locks.
  accessModes: [ReadWriteOncePod]
  {{- with $values.state.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $values.state.size }}
{{- end }}
{{- end -}}

{{- define "ruvd-sidecar.configMap" -}}
{{ .Release.Name }}-ruvd-settings
{{- end -}}

{{- define "ruvd-sidecar.claim" -}}
{{ (index .Values "ruvd-sidecar").state.existingClaim | default (printf "%s-ruvd-state" .Release.Name) }}
{{- end -}}

{{- define "ruvd-sidecar.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: ruvd-sidecar
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
