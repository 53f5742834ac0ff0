package main

import "fmt"

// backendBody is what the backend answers with: 45 bytes.
const backendBody = "hello from the backend, which says only this\n"

// lbConfig is lb as it is measured: one proxy route over one backend, the
// access log off because the bare proxy has none, metrics on as always.
func lbConfig(listen, admin, backend string) string {
	return fmt.Sprintf(`listeners:
  - { name: public, address: %q }
pools:
  - name: bench
    backends:
      - { address: %q }
routes:
  - { name: all, match: { path_prefix: / }, proxy: { pool: bench } }
admin: { address: %q }
storage: { path: "" }
shutdown: { drain: 2s }
log: { level: warn, access: { enabled: false } }
`, listen, backend, admin)
}

// nginxConfig is a backend that costs as little as can be: one worker, no logs,
// no reason to ever close a connection.
func nginxConfig(dir, listen string) string {
	return fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_temp_path %[1]s/body;
    proxy_temp_path %[1]s/proxy;
    fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi;
    scgi_temp_path %[1]s/scgi;
    default_type text/plain;
    server {
        listen %[2]s;
        location / { return 200 %[3]q; }
    }
}
`, dir, listen, backendBody)
}
