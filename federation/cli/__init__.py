"""The ``cohortium`` command. Arguments in, tables out; every decision is made elsewhere."""
