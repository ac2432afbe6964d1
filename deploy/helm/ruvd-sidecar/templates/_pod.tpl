{{/*
Fields of the pod's specification. Indent them like `containers`.
*/}}
{{- define "ruvd-sidecar.podSpec" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
{{- $drain := (($values.settings | default dict).drain_seconds) | default 25 -}}
# Otherwise a Service named ruvd-something would add variables such as RUVD_SOMETHING_PORT to every
# container, and ruvd refuses to start with a RUVD_ variable that is not a setting.
enableServiceLinks: false
# The end of the app, then drain_seconds, then 5 s to flush streams (1 s), to end the engine's process
# (at most 2 s), and a margin.
terminationGracePeriodSeconds: {{ add (int $values.appStopSeconds) (ceil $drain | int) 5 }}
{{- end -}}

{{/*
Fields of the pod's securityContext: the group of the shared volumes, which the socket inherits from
its folder. It lets the app connect whatever user it runs as, and no other user.
*/}}
{{- define "ruvd-sidecar.podSecurityContext" -}}
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- end -}}

{{/*
Annotations of the pod: a change of settings restarts it.
*/}}
{{- define "ruvd-sidecar.podAnnotations" -}}
checksum/ruvd-settings: {{ include "ruvd-sidecar.settings" (index .Values "ruvd-sidecar").settings | sha256sum }}
{{- end -}}

{{/*
Fields of the specification of a Deployment: with a persistent volume the new pod cannot start before
the old one is gone.
*/}}
{{- define "ruvd-sidecar.deploymentSpec" -}}
{{- if (index .Values "ruvd-sidecar").state.persistent -}}
strategy:
  type: Recreate
{{- end -}}
{{- end -}}

{{/*
Variables of the app's container: the daemon's address and the token to send, as the clients of all
languages read them.
*/}}
{{- define "ruvd-sidecar.appEnv" -}}
- name: RUVD_ADDRESS
  value: unix:/run/ruvd/ruvd.sock
- name: RUVD_TOKEN_FILE
  value: /var/run/secrets/ruvd/token
{{- end -}}

{{/*
Mounts of the app's container: folders, not files, because the socket is a new file after a restart of
the sidecar. Read-only keeps the app from replacing the socket, but not from connecting.
*/}}
{{- define "ruvd-sidecar.appVolumeMounts" -}}
- name: ruvd-socket
  mountPath: /run/ruvd
  readOnly: true
- name: ruvd-token
  mountPath: /var/run/secrets/ruvd
  readOnly: true
{{- end -}}

{{/*
The volumes of the app and the sidecar.
*/}}
{{- define "ruvd-sidecar.volumes" -}}
{{- $values := index .Values "ruvd-sidecar" -}}
- name: ruvd-socket
  emptyDir:
    # It holds only two sockets and their lock files, so no disk is needed.
    medium: Memory
    sizeLimit: 1Mi
- name: ruvd-token
  # For the app: it is good for ruvd and for nothing else.
  projected:
    sources:
      - serviceAccountToken:
          audience: ruvd
          expirationSeconds: 3600
          path: token
{{- if $values.identity.enabled }}
- name: ruvd-issuer
  # For the sidecar alone: a token for the API server, which asks for one before it tells its keys, and
  # the certificate of the API server.
  projected:
    sources:
      - serviceAccountToken:
          expirationSeconds: 3600
          path: token
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
{{- end }}
- name: ruvd-state
  {{- if $values.state.persistent }}
  persistentVolumeClaim:
    claimName: {{ include "ruvd-sidecar.claim" . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $values.state.size }}
  {{- end }}
- name: ruvd-tmp
  # Holds the embedded engine's socket. It is on disk, because memory volumes count towards the
  # container's memory limit.
  emptyDir:
    sizeLimit: 64Mi
{{- if and $values.engineSecret.name $values.engineSecret.apiKey }}
- name: ruvd-secret
  secret:
    secretName: {{ $values.engineSecret.name }}
    # Readable only for the group, which is fsGroup.
    defaultMode: 0440
    items:
      - key: {{ $values.engineSecret.apiKey }}
        path: api-key
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
