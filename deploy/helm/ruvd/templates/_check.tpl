{{/*
Checks the values together. Rendering fails with all problems at once. Values of a wrong type or an
unknown name are refused by values.schema.json before.
*/}}
{{- define "ruvd.check" -}}
{{- $settings := .Values.settings | default dict -}}
{{- $postgresql := eq .Values.store.kind "postgresql" -}}
{{- $problems := list -}}
{{- if not .Values.image.repository -}}
{{- $problems = append $problems "image.repository: name your image of ruvd, as there is no public one (docs/kubernetes.md says how to build it)" -}}
{{- end -}}
{{- if not (hasKey $settings "engine") -}}
{{- $problems = append $problems "settings.engine: choose openai, for a server elsewhere, or llama, the embedded engine" -}}
{{- else if eq (toString $settings.engine) "openai" -}}
{{- if not $settings.base_url -}}
{{- $problems = append $problems "settings.base_url: the engine openai needs the URL of a server" -}}
{{- end -}}
{{- if not $settings.model -}}
{{- $problems = append $problems "settings.model: the engine openai needs a model for calls that name none" -}}
{{- end -}}
{{- end -}}
{{- if not .Values.tls.secret -}}
{{- $problems = append $problems "tls.secret: name a Secret with tls.crt and tls.key, as other machines reach the port" -}}
{{- end -}}
{{- $own := dict
  "listen" "it is the port of the Service"
  "admin_listen" "it is a socket in the container"
  "http_listen" "set http.enabled"
  "health_listen" "it is the port of the probes"
  "metrics_listen" "set metrics.enabled"
  "allow_remote_insecure" "the port has TLS and identities"
  "tls_cert_file" "set tls.secret"
  "tls_key_file" "set tls.secret"
  "store" "set store.kind and store.url"
  "store_password_file" "set store.secret and store.passwordKey"
  "peer_listen" "set peers.enabled"
  "peer_address" "it is the pod's own"
  "peer_tls_cert_file" "set peers.secret"
  "peer_tls_key_file" "set peers.secret"
  "peer_tls_ca_file" "set peers.secret"
  "peer_tls_name" "set peers.tlsName"
  "api_key" "a secret: put it into a Secret, and name that in engineSecret.name"
  "cache_salt" "a secret: put it into a Secret, and name that in engineSecret.name and engineSecret.cacheSalt"
-}}
{{- if .Values.identity.serviceAccounts -}}
{{- range list "issuer" "audience" "jwks_file" "jwks_url" "jwks_ca_file" "jwks_token_file" -}}
{{- $_ := set $own (printf "jwt_%s" .) "callers are service accounts, unless identity.serviceAccounts is false" -}}
{{- end -}}
{{- $_ := set $own "jwt_identities" "set identity.rules" -}}
{{- if not .Values.identity.rules -}}
{{- $problems = append $problems "identity.rules: without a rule nobody may call" -}}
{{- end -}}
{{- else if not (or $settings.jwt_issuer $settings.tokens_file $settings.client_ca_file) -}}
{{- $problems = append $problems "identity.serviceAccounts: without it, set jwt_issuer and its neighbours, tokens_file or client_ca_file under settings, as other machines reach the port" -}}
{{- end -}}
{{- if and .Values.engineSecret.name .Values.engineSecret.apiKey -}}
{{- $_ := set $own "api_key_file" "the file is that of engineSecret.apiKey" -}}
{{- end -}}
{{- range $name, $advice := $own -}}
{{- if hasKey $settings $name -}}
{{- $problems = append $problems (printf "settings.%s: set by this chart; %s" $name $advice) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.engineSecret.cacheSalt (not .Values.engineSecret.name) -}}
{{- $problems = append $problems "engineSecret.name: name the Secret that has the key of engineSecret.cacheSalt" -}}
{{- end -}}
{{- with .Values.store -}}
{{- if $postgresql -}}
{{- if and .url .urlSecret.name -}}
{{- $problems = append $problems "store.url: exclude each other with store.urlSecret.name" -}}
{{- else if not (or .url .urlSecret.name) -}}
{{- $problems = append $problems "store.url: give the URL of the database, postgresql://USER@HOST/DATABASE, or name a Secret that has it in store.urlSecret.name" -}}
{{- else if .url -}}
{{- if not (regexMatch "^postgres(ql)?://" .url) -}}
{{- $problems = append $problems "store.url: must begin with postgresql://" -}}
{{- else if or (regexMatch "^[a-z]+://[^/?@]*:[^/?@]*@" .url) (contains "password=" .url) -}}
{{- $problems = append $problems "store.url: must not have the password, as it is printed; it is in the Secret of store.secret" -}}
{{- end -}}
{{- end -}}
{{- if and .secret .password -}}
{{- $problems = append $problems "store.password: excludes store.secret" -}}
{{- else if not (or .secret .password) -}}
{{- $problems = append $problems "store.secret: name a Secret with the password of the database's user" -}}
{{- end -}}
{{- else -}}
{{- range $name := list "url" "secret" "password" -}}
{{- if index $.Values.store $name -}}
{{- $problems = append $problems (printf "store.%s: for store.kind postgresql only" $name) -}}
{{- end -}}
{{- end -}}
{{- if .urlSecret.name -}}
{{- $problems = append $problems "store.urlSecret.name: for store.kind postgresql only" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $postgresql -}}
{{- if and .Values.peers.enabled (not .Values.peers.secret) -}}
{{- $problems = append $problems "peers.secret: name a Secret with tls.crt, tls.key and ca.crt, or set peers.enabled to false" -}}
{{- end -}}
{{- if or .Values.state.persistent .Values.state.existingClaim -}}
{{- $problems = append $problems "state.persistent: replicas share the database, not a volume; for store.kind sqlite only" -}}
{{- end -}}
{{- else -}}
{{- if kindIs "invalid" .Values.replicaCount -}}
{{- $problems = append $problems "replicaCount: must be 1 with store.kind sqlite, so no autoscaler can have it" -}}
{{- else if gt (int .Values.replicaCount) 1 -}}
{{- $problems = append $problems (printf "replicaCount: %d replicas need a database that they share; set store.kind to postgresql, or replicaCount to 1" (int .Values.replicaCount)) -}}
{{- end -}}
{{- if and .Values.state.existingClaim (not .Values.state.persistent) -}}
{{- $problems = append $problems "state.persistent: must be true for state.existingClaim" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- $problems = append $problems "metrics.enabled: must be true for metrics.serviceMonitor.enabled" -}}
{{- end -}}
{{- range $name := list "metrics" "http" -}}
{{- $part := index $.Values $name -}}
{{- if and $part.enabled (has (int $part.port) (list 50051 50052 50053)) -}}
{{- $problems = append $problems (printf "%s.port: 50051, 50052 and 50053 are ports of the daemon" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.enabled .Values.http.enabled (eq (int .Values.metrics.port) (int .Values.http.port)) -}}
{{- $problems = append $problems "metrics.port: is also http.port" -}}
{{- end -}}
{{- if and .Values.http.enabled (eq (int .Values.service.port) (int .Values.http.port)) -}}
{{- $problems = append $problems "service.port: is also http.port" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (eq (int .Values.service.port) (int .Values.metrics.port)) -}}
{{- $problems = append $problems "service.port: is also metrics.port" -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- range $name, $address := $settings -}}
{{- if and (hasSuffix "_listen" $name) (not (hasKey $own $name)) (not (regexMatch "^(127\\.|localhost:|\\[::1\\]:|unix:|$)" (toString $address))) -}}
{{- $problems = append $problems (printf "settings.%s: must be an address on loopback, as metrics.enabled switches the daemon's own check off" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $own := dict "extraEnv" "ruvd.env" "extraVolumes" "ruvd.volumes" -}}
{{- range include $own $ | fromYamlArray -}}
{{- $taken := .name -}}
{{- range index $.Values $name -}}
{{- if eq (toString .name) $taken -}}
{{- $problems = append $problems (printf "%s: %s is set by this chart" $name $taken) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := include "ruvd.selectorLabels" . | fromYaml -}}
{{- if hasKey ($.Values.podLabels | default dict) $name -}}
{{- $problems = append $problems (printf "podLabels: %s is set by this chart" $name) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "ruvd.fullname" .)) -}}
{{- $problems = append $problems (printf "fullnameOverride: %s cannot be the name of a Service, which has lower-case letters, digits and dashes, and begins with a letter; set another one" (include "ruvd.fullname" .)) -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nValues are wrong:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}
