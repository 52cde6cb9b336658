"""What the bytes are: payloads, signatures, release documents. No device, network or clock."""
