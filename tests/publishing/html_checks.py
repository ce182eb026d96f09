"""What the tests of pages look at: their elements, links and policy."""

import re
from html.parser import HTMLParser

ADDRESSES = ("href", "src", "srcset", "action", "formaction", "poster", "data", "background", "cite", "ping")
STYLED = re.compile(r"url\(\s*['\"]?(?!#|data:)([^)]*)|@import\s+(\S+)")


class Elements(HTMLParser):
    """A page's tags with attributes, the text of scripts and styles by id, its policy, ids, headings and links."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], {}, ""
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("script", "style"):
            name = self.tags[-1][1].get("id", self.inside)
            self.texts[name] = self.texts.get(name, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def policy(self):
        return next(a["content"] for a in self.all("meta") if a.get("http-equiv") == "Content-Security-Policy")

    @property
    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def addresses(self):
        """(tag, address) of everything that a page names, in attributes and styles."""
        found = [(tag, a[name]) for tag, a in self.tags for name in ADDRESSES if a.get(name)]
        styles = [self.texts.get("style", ""), *(a["style"] for _, a in self.tags if a.get("style"))]
        return found + [("style", "".join(match)) for style in styles for match in STYLED.findall(style)]
