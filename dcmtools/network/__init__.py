"""Things on the wire: the upper layer, the association, and one DIMSE service a module."""
