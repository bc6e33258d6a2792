"Words that a stranger stumbles over: a pattern, what to write instead, and a line that has it; `test_docs.py` looks for them"
import io, json, re, tokenize

patterns = [ # regular expression, what to write instead, example
    (r'\b(row|number|name|map|heatmap|box|cell|index|line|text) an? (zone|image|item|class|seed|arm|run|batch)\b',
     '… per …', 'one number an image'),
    (r'\b(bytes|[km]B|seconds|points|cells|images|channels|steps|epochs) an? (item|image|side|class|batch|epoch|second|step)\b',
     '… per …', '2 kB an item'),
    (r'predicted otherwise', 'misclassified, predicted as another class', 'Items that are predicted otherwise than labelled'),
    (r'\b(that|which|map|maps|heat|heatmap|it|and) says? nothing\b', 'uninformative (flat or NaN)', 'a map that says nothing'),
    (r'\bhangs? on (it|this|that|them|what|the)\b', 'depends on', 'how much hangs on it'),
    (r'\b[Aa]t most so many\b', 'the maximum number of', 'Keep at most so many of each class'),
    (r'\bfound by itself\b', 'auto-detected', 'None: found by itself'),
    (r'\brandom numbers?\b.*\b(as (they|it) (was|were)|left alone|untouched)\b', 'the RNG state is restored',
     'the random numbers are left as they were'),
    (r'\bThere (are|is): ', 'Available: …', 'There are: GradCAM, LayerCAM'),
    (r'\bitem by item\b', 'per-sample (loss), one item after the other', 'a loss that can be had item by item'),
    (r'\bwithout a network\b', 'offline', 'It works without a network.'),
    (r'\b[Ii]tem numbers?\b', 'indices of items', 'Item numbers of the chosen'),
    (r'\b([Tt]his|every|each|[Tt]he|whole|lower|upper) (room|floor|house)\b|\b([Rr]ooms|[Ff]loors)\b', 'module, package',
     'a function of a lower floor'),
    (r'\b(patch|square|cue|shortcut|label|background) (that )?lies( to|\.|,|;|:|$)', 'misleading', 'where the patch lies, it is wrong'),
    (r'killed, the same command goes on', 'a stopped command is resumed by the same command', 'Or killed, the same command goes on'),
    (r'[Ww]hat (is|was) stopped goes on', 'a stopped run is resumed', 'What is stopped goes on.'),
    (r'[Aa]sk before you treat', 'Probe first', 'Ask before you treat'),
    (r'refused with a sentence', 'an error that says', 'Others are refused with a sentence.'),
    (r'looked at itself, too', 'also for the original image', 'the place where it was looked at itself, too'),
    (r'is another one each epoch', 'changes from epoch to epoch', 'The donor is another one each epoch'),
    (r'\b[Nn]or less than this', 'the minimum', 'Nor less than this'),
    (r'\b[Oo]f what: ', 'What to explain: …', 'Of what: label, pred, margin'),
    (r'^\W*Between two steps', 'The number of epochs between two steps', 'Between two steps'),
    (r'\blooks at the (end|middle)\b', 'the accuracy and where it was measured', 'looks at the end'),
]

def found(text):
    "What stands in a text that should not: the words, and what to write instead"
    return [(m[0],instead) for pattern,instead,_ in patterns for m in re.finditer(pattern, text)]

def quoted(code):
    "Comments and text of a piece of Python: each with its line"
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING))
    code = '\n'.join('' if o.startswith(('%','!')) else o for o in code.splitlines()) # of IPython
    for o in tokenize.generate_tokens(io.StringIO(code).readline):
        if o.type in kinds: yield from enumerate(o.string.splitlines(), o.start[0])

def lines_of(f):
    "Lines of a page, or of a notebook's text, comments and strings: each with its place"
    text = f.read_text(encoding='utf-8')
    if f.suffix!='.ipynb': yield from enumerate(text.splitlines(), 1)
    else:
        for c in json.loads(text)['cells']:
            src = ''.join(c['source'])
            told = enumerate(src.splitlines(), 1) if c['cell_type']=='markdown' else quoted(src)
            yield from ((f'{c["id"]}:{i}',o) for i,o in told)
