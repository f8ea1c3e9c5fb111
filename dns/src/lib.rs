//! portolan-dns: the cluster's DNS server, as a library.
