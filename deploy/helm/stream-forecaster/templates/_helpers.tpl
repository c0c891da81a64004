{{- define "stream-forecaster.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- /* The rules and the dashboard know the job by app.kubernetes.io/name: it is the same in all releases. */ -}}
{{- define "stream-forecaster.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stream-forecaster.labels" -}}
{{ include "stream-forecaster.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "stream-forecaster.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "stream-forecaster.claim" -}}
{{ .Values.state.volume.existingClaim | default (include "stream-forecaster.fullname" .) }}
{{- end }}

{{- define "stream-forecaster.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "stream-forecaster.fullname" .) }}
{{- end }}

{{- define "stream-forecaster.check" -}}
{{- if not .Values.kafka.bootstrapServers -}}
{{- fail "set kafka.bootstrapServers to host:port of the broker" -}}
{{- end -}}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- $shared := or .Values.state.checkpointUrl .Values.state.volume.existingClaim -}}
{{- if and (gt $most 1) (not $shared) (ne .Values.state.volume.accessMode "ReadWriteMany") -}}
{{- fail "several replicas share their checkpoints: set state.volume.accessMode to ReadWriteMany, or state.checkpointUrl to an object store" -}}
{{- end -}}
{{- end }}

{{- define "stream-forecaster.environment" -}}
# stable over restarts, unique in the group
- name: STREAM_FORECASTER__KAFKA__INSTANCE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: STREAM_FORECASTER__KAFKA__BOOTSTRAP_SERVERS
  value: {{ .Values.kafka.bootstrapServers | quote }}
- name: STREAM_FORECASTER__KAFKA__GROUP_ID
  value: {{ .Values.kafka.groupId | quote }}
- name: STREAM_FORECASTER__INPUT__TOPIC
  value: {{ .Values.input.topic | quote }}
- name: STREAM_FORECASTER__LOG__FORMAT
  value: json
{{- with .Values.state.checkpointUrl }}
- name: STREAM_FORECASTER__STATE__CHECKPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- range .Values.secrets }}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}
{{- with .Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- define "stream-forecaster.confinement" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "stream-forecaster.mounts" -}}
- name: config
  mountPath: /etc/stream-forecaster
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if not .Values.state.checkpointUrl }}
- name: state
  mountPath: /var/lib/stream-forecaster
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
