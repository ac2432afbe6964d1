{{/*
The variables of settings: the data of a ConfigMap. Called with the map of settings.
*/}}
{{- define "ruvd-sidecar.settings" -}}
{{- range $name, $value := . }}
RUVD_{{ upper $name }}: {{ include "ruvd-sidecar.settingText" $value | quote }}
{{- end }}
{{- end -}}

{{/*
The text of a setting in a variable. Numbers in values are floating-point, and a large one would be
written as 1e+06. Lists and maps are written as JSON.
*/}}
{{- define "ruvd-sidecar.settingText" -}}
{{- if or (kindIs "slice" .) (kindIs "map" .) -}}
{{- toJson . -}}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{- int64 . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
