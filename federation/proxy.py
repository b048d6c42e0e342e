"""The reverse proxy before a hub: sites reach Flower's fleet calls with a certificate, and no more.

Flower's SuperLink serves everything on one port, and what steers runs has no authentication. So it
listens on loopback alone, and nginx lets through exactly the calls that a site makes.
"""

from dataclasses import dataclass
from pathlib import Path

# What a site's agent calls. Not register-node (a site would admit itself), get-fab and get-run.
FLEET_CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "pull-object",
    "push-object",
    "confirm-message-received",
)
# Flower sends arrays in parts of 5 MiB.
_MAX_BODY = "16m"


@dataclass(frozen=True)
class Proxy:
    """Everything that the configuration names. All paths are absolute.

    Attributes:
        listen: Address and port that sites reach.
        link_port: The SuperLink's, on loopback.
        ca: Who signs the certificates of sites, PEM.
        link_ca: Who signs the SuperLink's own certificate, PEM.
        folder: For the proxy's own files, written by nobody else.
    """

    listen: str
    link_port: int
    certificate: Path
    key: Path
    ca: Path
    link_ca: Path
    folder: Path


def nginx_config(proxy: Proxy) -> str:
    """Return a complete nginx configuration (nginx 1.22 or later) that runs without root."""
    calls = "|".join(FLEET_CALLS)
    return f"""\
# Written by cohortium hub init. Sites reach the calls below and nothing else.
daemon off;
pid {proxy.folder}/nginx.pid;
error_log {proxy.folder}/error.log warn;
worker_processes 1;
events {{ worker_connections 1024; }}

http {{
    server_tokens off;
    access_log off;
    client_body_temp_path {proxy.folder}/body;
    proxy_temp_path {proxy.folder}/proxy;
    fastcgi_temp_path {proxy.folder}/unused;
    uwsgi_temp_path {proxy.folder}/unused;
    scgi_temp_path {proxy.folder}/unused;
    client_max_body_size {_MAX_BODY};
    keepalive_timeout 75s;

    upstream superlink {{
        server 127.0.0.1:{proxy.link_port};
        keepalive 32;
    }}

    server {{
        listen {proxy.listen} ssl;
        ssl_certificate {proxy.certificate};
        ssl_certificate_key {proxy.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        # Sites must show a certificate of this authority.
        ssl_client_certificate {proxy.ca};
        ssl_verify_client on;
        ssl_verify_depth 2;

        location ~ ^/v1/fleet/({calls})$ {{
            limit_except POST {{ deny all; }}
            proxy_pass https://superlink;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host 127.0.0.1;
            proxy_ssl_trusted_certificate {proxy.link_ca};
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_session_reuse on;
            proxy_read_timeout 120s;
            proxy_request_buffering off;
        }}
        location / {{ return 404; }}
    }}
}}
"""
