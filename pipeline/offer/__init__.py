"""What is offered of a folder of products: catalogue, page, provenance, checksums, server."""
