{{- define "ruvd.volumes" -}}
- name: ruvd-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
- name: ruvd-state
  # Sessions on SQLite, and saved KV states of the embedded engine.
  {{- if .Values.state.persistent }}
  persistentVolumeClaim:
    claimName: {{ include "ruvd.claim" . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.state.size }}
  {{- end }}
- name: ruvd-tmp
  emptyDir:
    sizeLimit: 64Mi
- name: ruvd-tls
  # A certificate for the name of the Service. The files are read again when they change.
  secret:
    secretName: {{ .Values.tls.secret }}
    # Readable only for the group, which is fsGroup.
    defaultMode: 0440
{{- if include "ruvd.peers" . }}
- name: ruvd-peers
  # Its CA must sign for replicas only: whoever has one of its certificates can call as any tenant.
  secret:
    secretName: {{ .Values.peers.secret }}
    defaultMode: 0440
{{- end }}
{{- if include "ruvd.storeVolume" . }}
- name: ruvd-store
  # The password of the database's user, and the CA of the database's certificate.
  secret:
    secretName: {{ include "ruvd.storeSecret" . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.identity.serviceAccounts }}
- name: ruvd-issuer
  # A token for the API server, which asks for one before it tells its keys, and the certificate of the
  # API server.
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
{{- if and .Values.engineSecret.name .Values.engineSecret.apiKey }}
- name: ruvd-secret
  secret:
    secretName: {{ .Values.engineSecret.name }}
    defaultMode: 0440
    items:
      - key: {{ .Values.engineSecret.apiKey }}
        path: api-key
{{- end }}
{{- end -}}
