"""The networks: the Wan transformer with a KV memory, its attention, text encoders and streaming video decoders."""
