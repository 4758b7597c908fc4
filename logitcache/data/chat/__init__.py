"""Conversations as token ids by the teacher's chat template, and which of those tokens are targets."""

from logitcache.data.chat.encoding import ChatTemplate, ChatTokens
from logitcache.data.chat.messages import Message
from logitcache.data.chat.sharegpt import from_sharegpt

__all__ = ["ChatTemplate", "ChatTokens", "Message", "from_sharegpt"]
