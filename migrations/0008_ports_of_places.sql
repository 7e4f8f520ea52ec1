-- Only sessions that share this machine's ports keep out of each other's way: a pod's are its own.
drop index session_port;
create unique index session_port on session (preview_port)
    where status in ('provisioning', 'active', 'ending') and pod_name like 'local-%';
