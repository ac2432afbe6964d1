{{/*
The sidecar, an item of the pod's initContainers: a native sidecar, which starts before the app and
ends after it. Put it first, so that other init containers may use ruvd.
*/}}
{{- define "ruvd-sidecar.initContainer" -}}
{{- include "ruvd-sidecar.check" . -}}
{{- $values := index .Values "ruvd-sidecar" -}}
- name: ruvd
  restartPolicy: Always
  image: {{ include "ruvd-sidecar.image" . }}
  {{- with $values.image.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  args: [serve]
  # Settings by their variables. Those under `env` depend on the shape of this pod.
  envFrom:
    - configMapRef:
        name: {{ include "ruvd-sidecar.configMap" . }}
        optional: true
  env:
    {{- include "ruvd-sidecar.env" . | nindent 4 }}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $values.grpcProbes $values.metrics.enabled }}
  ports:
    {{- if $values.grpcProbes }}
    - name: ruvd-health
      containerPort: 50052
    {{- end }}
    {{- if $values.metrics.enabled }}
    - name: ruvd-metrics
      containerPort: {{ $values.metrics.port }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "ruvd-sidecar.securityContext" . | nindent 4 }}
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  startupProbe:
    # Liveness, not readiness: the app may start while the engine loads or is down, and calls wait for
    # the engine up to engine_start_seconds.
    {{- include "ruvd-sidecar.probe" (list . "liveness") | nindent 4 }}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 60
  readinessProbe:
    # The store and the engine are up, and the daemon does not drain. It decides for the whole pod.
    {{- include "ruvd-sidecar.probe" (list . "readiness") | nindent 4 }}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 2
  livenessProbe:
    # The event loop responds. Restarting ruvd would not repair a remote engine.
    {{- include "ruvd-sidecar.probe" (list . "liveness") | nindent 4 }}
    periodSeconds: 20
    timeoutSeconds: 5
    failureThreshold: 3
  lifecycle:
    preStop:
      # Turns readiness off, together with the app's own preStop. No call is refused before SIGTERM,
      # which comes after the app's end.
      exec:
        command: [ruvd, drain]
  volumeMounts:
    - name: ruvd-socket
      mountPath: /run/ruvd
    - name: ruvd-state
      mountPath: /var/lib/ruvd
    - name: ruvd-tmp
      mountPath: /tmp
    - name: ruvd-token
      mountPath: /var/run/secrets/ruvd
      readOnly: true
    {{- if $values.identity.enabled }}
    - name: ruvd-issuer
      mountPath: /var/run/secrets/ruvd-issuer
      readOnly: true
    {{- end }}
    {{- if and $values.engineSecret.name $values.engineSecret.apiKey }}
    - name: ruvd-secret
      mountPath: /etc/ruvd/secret
      readOnly: true
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/*
The image, by its digest if there is one.
*/}}
{{- define "ruvd-sidecar.image" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
{{- with $values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default (index $.Subcharts "ruvd-sidecar").Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The container's securityContext. The user is that of the image, and not the app's.
*/}}
{{- define "ruvd-sidecar.securityContext" -}}
runAsUser: 10001
runAsGroup: 10001
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/*
The handler of a probe. Called with the context and the service to ask for. The kubelet cannot connect
to a Unix socket, so it starts a process, unless the port for probes is open.
*/}}
{{- define "ruvd-sidecar.probe" -}}
{{- if (index (index . 0).Values "ruvd-sidecar").grpcProbes -}}
grpc:
  port: 50052
  service: {{ index . 1 }}
{{- else -}}
exec:
  command: [ruvd, health, --address, "unix:/run/ruvd/ruvd.sock", --service, {{ index . 1 }}]
{{- end -}}
{{- end -}}

{{/*
The sidecar's own variables, beside the ConfigMap.
*/}}
{{- define "ruvd-sidecar.env" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
{{- $settings := $values.settings | default dict -}}
# On a volume that the app and the sidecar share. The socket has mode 0660.
- name: RUVD_LISTEN
  value: unix:/run/ruvd/ruvd.sock
# For `ruvd drain` and `ruvd admin`. Only the sidecar's user can enter the directory.
- name: RUVD_ADMIN_LISTEN
  value: unix:/run/ruvd/admin/admin.sock
# Not a setting of the daemon: its commands find it here, in `kubectl exec -c ruvd`.
- name: RUVD_ADDRESS
  value: unix:/run/ruvd/ruvd.sock
# Not a setting of the daemon either, but the token of its commands.
- name: RUVD_TOKEN_FILE
  value: /var/run/secrets/ruvd/token
{{- if $values.identity.enabled }}
# Who may call: whoever has a token of this pod's own service account for the audience `ruvd`. The
# issuer differs from cluster to cluster, so it is that of the sidecar's own token.
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_SERVICE_ACCOUNT
  valueFrom:
    fieldRef:
      fieldPath: spec.serviceAccountName
- name: RUVD_JWT_ISSUER
  value: token-file
- name: RUVD_JWT_AUDIENCE
  value: ruvd
# The tenant is the one that sessions belong to without identities, so that switching them on or off
# loses none.
- name: RUVD_JWT_IDENTITIES
  value: system:serviceaccount:$(POD_NAMESPACE):$(POD_SERVICE_ACCOUNT);tenant=default
- name: RUVD_JWT_JWKS_URL
  value: https://kubernetes.default.svc/openid/v1/jwks
- name: RUVD_JWT_JWKS_CA_FILE
  value: /var/run/secrets/ruvd-issuer/ca.crt
- name: RUVD_JWT_JWKS_TOKEN_FILE
  value: /var/run/secrets/ruvd-issuer/token
{{- end }}
{{- if not (hasKey $settings "store") }}
- name: RUVD_STORE
  value: sqlite:/var/lib/ruvd/sessions.db
{{- end }}
{{- if not (hasKey $settings "drain_seconds") }}
- name: RUVD_DRAIN_SECONDS
  value: "25"
{{- end }}
{{- if $values.grpcProbes }}
# All addresses of the pod, because the kubelet connects to the pod's IP. The port serves
# grpc.health.v1 and nothing else.
- name: RUVD_HEALTH_LISTEN
  value: 0.0.0.0:50052
{{- end }}
{{- if $values.metrics.enabled }}
- name: RUVD_METRICS_LISTEN
  value: 0.0.0.0:{{ $values.metrics.port }}
# The endpoint has neither TLS nor identities. All other addresses are Unix sockets or health only.
- name: RUVD_ALLOW_REMOTE_INSECURE
  value: "true"
{{- end }}
{{- with $values.engineSecret }}
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
