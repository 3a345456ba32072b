"""From what was observed to what is shown: one `ApiStatus` an api. Glue between `planning.status` and the wire."""
