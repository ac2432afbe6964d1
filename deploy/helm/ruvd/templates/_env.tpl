{{/*
The variables of the container that depend on the shape of the pod, beside the ConfigMap.
*/}}
{{- define "ruvd.env" -}}
# Other machines can reach this address, so it needs TLS and identities.
- name: RUVD_LISTEN
  value: 0.0.0.0:50051
- name: RUVD_TLS_CERT_FILE
  value: /etc/ruvd/tls/tls.crt
- name: RUVD_TLS_KEY_FILE
  value: /etc/ruvd/tls/tls.key
# For the kubelet's probes, which speak no TLS. It serves grpc.health.v1 and nothing else.
- name: RUVD_HEALTH_LISTEN
  value: 0.0.0.0:50052
{{- if include "ruvd.peers" . }}
# Calls for the session of another replica are forwarded to its pod, by mutual TLS. The certificates
# have one name, as nobody knows the addresses of pods in advance.
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: RUVD_PEER_LISTEN
  value: 0.0.0.0:50053
- name: RUVD_PEER_ADDRESS
  value: $(POD_IP):50053
- name: RUVD_PEER_TLS_CERT_FILE
  value: /etc/ruvd/peers/tls.crt
- name: RUVD_PEER_TLS_KEY_FILE
  value: /etc/ruvd/peers/tls.key
- name: RUVD_PEER_TLS_CA_FILE
  value: /etc/ruvd/peers/ca.crt
- name: RUVD_PEER_TLS_NAME
  value: {{ .Values.peers.tlsName }}
{{- end }}
# For `ruvd drain` and `ruvd admin` in this container.
- name: RUVD_ADMIN_LISTEN
  value: unix:/run/ruvd/admin/admin.sock
{{- with .Values.store }}
- name: RUVD_STORE
  {{- if eq .kind "sqlite" }}
  value: sqlite:/var/lib/ruvd/sessions.db
  {{- else if .url }}
  value: {{ .url | quote }}
  {{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ .urlSecret.name }}
      key: {{ .urlSecret.key }}
  {{- end }}
{{- end }}
{{- if include "ruvd.storeVolume" . }}
{{- with ternary "password" .Values.store.passwordKey (not (empty .Values.store.password)) }}
- name: RUVD_STORE_PASSWORD_FILE
  value: /etc/ruvd/store/{{ . }}
{{- end }}
{{- end }}
{{- if not (hasKey (.Values.settings | default dict) "drain_seconds") }}
- name: RUVD_DRAIN_SECONDS
  value: "25"
{{- end }}
{{- if .Values.identity.serviceAccounts }}
# Who may call: service accounts with tokens for the audience `ruvd`. Each is a tenant of its own.
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: RUVD_JWT_ISSUER
  value: token-file
- name: RUVD_JWT_AUDIENCE
  value: ruvd
- name: RUVD_JWT_IDENTITIES
  value: {{ ternary (toJson .Values.identity.rules) (join "," .Values.identity.rules) (contains "," (join "" .Values.identity.rules)) | quote }}
- name: RUVD_JWT_JWKS_URL
  value: https://kubernetes.default.svc/openid/v1/jwks
- name: RUVD_JWT_JWKS_CA_FILE
  value: /var/run/secrets/ruvd-issuer/ca.crt
- name: RUVD_JWT_JWKS_TOKEN_FILE
  value: /var/run/secrets/ruvd-issuer/token
{{- end }}
{{- if .Values.http.enabled }}
- name: RUVD_HTTP_LISTEN
  value: 0.0.0.0:{{ .Values.http.port }}
{{- end }}
{{- if .Values.metrics.enabled }}
- name: RUVD_METRICS_LISTEN
  value: 0.0.0.0:{{ .Values.metrics.port }}
# The endpoint of the metrics has neither TLS nor identities. The setting allows that for all addresses;
# this chart gives TLS and identities to that of callers nonetheless.
- name: RUVD_ALLOW_REMOTE_INSECURE
  value: "true"
{{- end }}
{{- with .Values.engineSecret }}
{{- if and .name .apiKey }}
- name: RUVD_API_KEY_FILE
  value: /etc/ruvd/secret/api-key
{{- end }}
{{- if and .name .cacheSalt }}
# Separates this deployment's part of the server's cache from that of others.
- name: RUVD_CACHE_SALT
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .cacheSalt }}
{{- end }}
{{- end }}
{{- end -}}
