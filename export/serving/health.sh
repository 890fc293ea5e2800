#!/usr/bin/env bash
# Succeeds when a version of the model is AVAILABLE: health.sh [REST_PORT] [MODEL]. It asks for the model's status, since
# a server that listens need not have a model; and needs only bash and grep, because the official image has no curl.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:-8501}"
printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\n\r\n' "${2:-tcp}" >&3
grep -q '"AVAILABLE"' <&3
