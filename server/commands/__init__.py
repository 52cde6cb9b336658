"""The verbs of `bascule-server`, one file a noun. Arguments in, facts out; no rules here."""
