{{/*
The name of all objects, as charts usually make it. It is that of a Service too: at most 63 characters,
and it begins with a letter.
*/}}
{{- define "ruvd.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ruvd.selectorLabels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ruvd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "ruvd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "ruvd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "ruvd.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "ruvd.claim" -}}
{{ .Values.state.existingClaim | default (printf "%s-state" (include "ruvd.fullname" .)) }}
{{- end -}}

{{/*
The Secret of the store: an existing one, or the chart's own.
*/}}
{{- define "ruvd.storeSecret" -}}
{{ .Values.store.secret | default (printf "%s-store" (include "ruvd.fullname" .)) }}
{{- end -}}

{{/*
Whether replicas forward calls to each other: a text that is empty if not.
*/}}
{{- define "ruvd.peers" -}}
{{- if and (eq .Values.store.kind "postgresql") .Values.peers.enabled -}}yes{{- end -}}
{{- end -}}

{{/*
Whether the volume ruvd-store is needed: a text that is empty if not.
*/}}
{{- define "ruvd.storeVolume" -}}
{{- if and (eq .Values.store.kind "postgresql") (or .Values.store.secret .Values.store.password) -}}yes{{- end -}}
{{- end -}}
