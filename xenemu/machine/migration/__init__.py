"""A suspended domain as a stream, in the format of Xen's own tools, and the domain of a stream.

* `records`: the stream of libxenguest: headers and records, as bytes.
* `envelope`: what `xl save` has around that stream.
* `saved`: what the records say of a domain.
* `pv_save`, `pvh_save`: the domain of a machine, as records have it.
* `pv_restore`, `pvh_restore`: a new domain from that.
"""
