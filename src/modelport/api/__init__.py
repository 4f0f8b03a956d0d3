"""The HTTP doors: they parse the wire format into a call or a use case, and render the answer. No rules here."""
