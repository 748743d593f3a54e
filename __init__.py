"""The door ComfyUI knocks on. The pack's nodes come with a later release; until then nothing is registered."""
