{{- define "insights-gateway.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "insights-gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "insights-gateway.labels" -}}
{{ include "insights-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "insights-gateway.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Whole folders, not files by subPath, in which changes would not be seen. */}}
{{- define "insights-gateway.mounts" -}}
- { name: configuration, mountPath: /etc/insights-gateway, readOnly: true }
- { name: credentials, mountPath: /run/secrets/insights-gateway, readOnly: true }
{{- range $folder, $_ := .Values.extraSecrets }}
- { name: secret-{{ $folder }}, mountPath: /run/secrets/{{ $folder }}, readOnly: true }
{{- end }}
{{- end -}}

{{- /* Fails if the probes or the Service could not reach the gateway. They come from outside the pod, to fixed ports. */}}
{{- define "insights-gateway.checkAddresses" -}}
{{- $config := fromToml .Values.config -}}
{{- with $config.Error -}}
{{- fail (printf "config is not TOML: %s" .) -}}
{{- end -}}
{{- $admin := dig "admin" "listen" "127.0.0.1:9090" $config -}}
{{- $data := dig "server" "listen" (list "127.0.0.1:8080") $config -}}
{{- range .Values.extraEnv -}}
{{- if and .value (eq .name "INSIGHTS_GATEWAY_ADMIN__LISTEN") -}}{{- $admin = .value -}}{{- end -}}
{{- if and .value (eq .name "INSIGHTS_GATEWAY_SERVER__LISTEN") -}}{{- $data = splitList "," .value -}}{{- end -}}
{{- end -}}
{{- if not (regexMatch (include "insights-gateway.beyondLoopback" 9090) (toString $admin)) -}}
{{- fail (printf "the probes cannot reach the admin plane at admin.listen = %q: write \"0.0.0.0:9090\", and admin.token_sha256" $admin) -}}
{{- end -}}
{{- $reached := false -}}
{{- range $data -}}
{{- if regexMatch (include "insights-gateway.beyondLoopback" 8080) (toString .) -}}{{- $reached = true -}}{{- end -}}
{{- end -}}
{{- if not $reached -}}
{{- fail (printf "the Service cannot reach the data plane at server.listen = %s: write [\"0.0.0.0:8080\"]" (toJson $data)) -}}
{{- end -}}
{{- end -}}

{{- /* An address with this port on all interfaces. A pod's own address is not known beforehand. */}}
{{- define "insights-gateway.beyondLoopback" -}}
^(0\.0\.0\.0|\[::\]):{{ . }}$
{{- end -}}

{{- /* The store's URL, or nothing. A variable overrides the configuration. Its value may be known only to the cluster. */}}
{{- define "insights-gateway.store" -}}
{{- $store := dig "shared" "url" "" (fromToml .Values.config) -}}
{{- range .Values.extraEnv -}}
{{- if eq .name "INSIGHTS_GATEWAY_SHARED__URL" -}}
{{- if or .value .valueFrom -}}{{- $store = .value | default "set by a variable" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $store -}}
{{- end -}}

{{- /* How many replicas the gateways expect, or nothing where only a variable of the cluster says it. */}}
{{- define "insights-gateway.expected" -}}
{{- $expected := dig "shared" "replicas" "" (fromToml .Values.config) | toString -}}
{{- range .Values.extraEnv -}}
{{- if eq .name "INSIGHTS_GATEWAY_SHARED__REPLICAS" -}}
{{- if or .value .valueFrom -}}{{- $expected = .value | default "set by a variable" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $expected -}}
{{- end -}}

{{- /* Fails if pods that share nothing would each spend the whole rate, or if there are more than the gateways expect. */}}
{{- define "insights-gateway.checkReplicas" -}}
{{- $replicas := int .Values.replicas -}}
{{- if and (gt $replicas 1) (not (include "insights-gateway.store" .)) -}}
{{- fail (printf "replicas is %d, and config has no shared.url: pods that share nothing would each spend the whole rate. Set shared.url, or replicas to 1" $replicas) -}}
{{- end -}}
{{- $expected := include "insights-gateway.expected" . -}}
{{- if and (regexMatch "^[0-9]+$" $expected) (lt (int $expected) $replicas) -}}
{{- fail (printf "replicas is %d, and shared.replicas only %s: raise that, or leave it out" $replicas $expected) -}}
{{- end -}}
{{- end -}}

{{- define "insights-gateway.env" -}}
{{- with .Values.extraEnv }}
{{- toYaml . }}
{{- end }}
{{- if and (include "insights-gateway.store" .) (not (include "insights-gateway.expected" .)) }}
- { name: INSIGHTS_GATEWAY_SHARED__REPLICAS, value: {{ .Values.replicas | quote }} }
{{- end }}
{{- end -}}
