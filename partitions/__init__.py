"""Where the bytes go: partition tables, slots, durable writing, boot control. Knows no payload, no network."""
