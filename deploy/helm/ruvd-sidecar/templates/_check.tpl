{{/*
The values of this library, after they have been checked. Rendering fails with all problems at once.
Values of a wrong type or an unknown name are refused by values.schema.json before.
*/}}
{{- define "ruvd-sidecar.check" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
{{- if not $values -}}
{{- fail "there are no values under `ruvd-sidecar`: give the dependency ruvd-sidecar no alias" -}}
{{- end -}}
{{- $settings := $values.settings | default dict -}}
{{- $problems := list -}}
{{- if not $values.image.repository -}}
{{- $problems = append $problems "image.repository: name your image of ruvd, as there is no public one (docs/kubernetes.md says how to build it)" -}}
{{- end -}}
{{- $own := dict
  "listen" "the socket is the one that the app mounts"
  "admin_listen" "the socket is in a folder of the shared volume"
  "health_listen" "set grpcProbes"
  "metrics_listen" "set metrics.enabled"
  "allow_remote_insecure" "set metrics.enabled"
  "api_key" "a secret: put it into a Secret, and name that in engineSecret.name"
  "cache_salt" "a secret: put it into a Secret, and name that in engineSecret.name and engineSecret.cacheSalt"
-}}
{{- if $values.identity.enabled -}}
{{- range list "issuer" "audience" "identities" "jwks_file" "jwks_url" "jwks_ca_file" "jwks_token_file" -}}
{{- $_ := set $own (printf "jwt_%s" .) "callers have tokens of the pod's service account, unless identity.enabled is false" -}}
{{- end -}}
{{- end -}}
{{- if and $values.engineSecret.name $values.engineSecret.apiKey -}}
{{- $_ := set $own "api_key_file" "the file is that of engineSecret.apiKey" -}}
{{- end -}}
{{- range $name, $advice := $own -}}
{{- if hasKey $settings $name -}}
{{- $problems = append $problems (printf "settings.%s: set by this chart; %s" $name $advice) -}}
{{- end -}}
{{- end -}}
{{- if eq (toString $settings.engine) "openai" -}}
{{- if not $settings.base_url -}}
{{- $problems = append $problems "settings.base_url: the engine openai needs the URL of a server" -}}
{{- end -}}
{{- if not $settings.model -}}
{{- $problems = append $problems "settings.model: the engine openai needs a model for calls that name none" -}}
{{- end -}}
{{- end -}}
{{- if and $values.engineSecret.cacheSalt (not $values.engineSecret.name) -}}
{{- $problems = append $problems "engineSecret.name: name the Secret that has the key of engineSecret.cacheSalt" -}}
{{- end -}}
{{- if and $values.state.existingClaim (not $values.state.persistent) -}}
{{- $problems = append $problems "state.persistent: must be true for state.existingClaim" -}}
{{- end -}}
{{- if $values.metrics.enabled -}}
{{- range $name, $address := $settings -}}
{{- if and (hasSuffix "_listen" $name) (not (hasKey $own $name)) (not (regexMatch "^(127\\.|localhost:|\\[::1\\]:|unix:|$)" (toString $address))) -}}
{{- $problems = append $problems (printf "settings.%s: must be an address on loopback, as metrics.enabled switches the daemon's own check off" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.metrics.enabled $values.grpcProbes (eq (int $values.metrics.port) 50052) -}}
{{- $problems = append $problems "metrics.port: 50052 is the port of grpcProbes" -}}
{{- end -}}
{{- range include "ruvd-sidecar.env" . | fromYamlArray -}}
{{- $taken := .name -}}
{{- range $values.extraEnv -}}
{{- if eq (toString .name) $taken -}}
{{- $problems = append $problems (printf "extraEnv: %s is set by this chart" $taken) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nValues under `ruvd-sidecar` are wrong:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}
