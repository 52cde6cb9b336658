"""What the bytes are: payloads, signatures, release documents, images. Knows no device, network or clock."""
