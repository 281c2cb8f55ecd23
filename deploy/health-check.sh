#!/bin/bash
# Health check of the container: exits 0 if the server says that it is ready. Needs only bash.
set -u
exec 3<>"/dev/tcp/127.0.0.1/${XMOE_HTTP_PORT:-8080}" || exit 1
printf 'GET /ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
# To the end, or the server takes it for a client that went away.
while read -r -t 4 _ <&3; do :; done
[ "$status" = 200 ]
