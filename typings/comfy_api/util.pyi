from .latest import Types

VideoComponents = Types.VideoComponents
