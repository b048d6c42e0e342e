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
        admitted: SHA-1 fingerprints, hex, of the certificates that are let through; None for all
            that ``ca`` has signed. SHA-1 is what nginx offers; a forger would have to find a second
            certificate of the same fingerprint that ``ca`` has signed as well.
        revoked: A revocation list of ``ca``, PEM, or None.
    """

    listen: str
    link_port: int
    certificate: Path
    key: Path
    ca: Path
    link_ca: Path
    folder: Path
    admitted: tuple[str, ...] | None = None
    revoked: Path | None = None


def nginx_config(proxy: Proxy) -> str:
    """Return a complete nginx configuration (nginx 1.22 or later) that runs without root."""
    calls = "|".join(FLEET_CALLS)
    crl = f"ssl_crl {proxy.revoked};" if proxy.revoked else "# No revocation list (hub.yaml: crl)."
    return f"""\
# Written by 'cohortium hub'. Sites reach the calls below and nothing else.
daemon off;
pid {proxy.folder}/nginx.pid;
error_log {proxy.folder}/error.log warn;
worker_processes 1;
worker_shutdown_timeout 10s;  # of a worker whose configuration is no more
events {{ worker_connections 1024; }}

http {{
    server_tokens off;
    map_hash_bucket_size 128;
    access_log off;
    client_body_temp_path {proxy.folder}/body;
    proxy_temp_path {proxy.folder}/proxy;
    fastcgi_temp_path {proxy.folder}/unused;
    uwsgi_temp_path {proxy.folder}/unused;
    scgi_temp_path {proxy.folder}/unused;
    client_max_body_size {_MAX_BODY};
    keepalive_timeout 75s;

    # Whose certificate is let through: 'hub add-site' and 'hub remove-site' write this.
    map $ssl_client_fingerprint $admitted {{
{_admitted(proxy)}
    }}

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
        {crl}
        if ($admitted = 0) {{ return 400; }}

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


def _admitted(proxy: Proxy) -> str:
    if proxy.admitted is None:
        return "        default 1;"
    lines = ["        default 0;", *(f"        {one} 1;" for one in sorted(proxy.admitted))]
    return "\n".join(lines)
