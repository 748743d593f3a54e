"""The web server of live sessions: routes that `salt live` and ComfyUI mount (see `routes.add_routes`)."""
