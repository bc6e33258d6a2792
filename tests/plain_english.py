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
    (r'\b[Oo]ne an? (row|column|image|item|class)\b', 'one per …', 'Captions: one an image'),
    (r'\b[Ii]nches an? (picture|map|image)\b', 'inches per picture', 'Inches an image'),
    (r'\bonce an? (epoch|step|run|image)\b', 'once per …', 'It is measured once an epoch.'),
    (r'\b[Aa]s a share of\b', 'as a fraction of', 'Width, as a share of the shorter side'),
    (r'\bnothing to tell\b', 'nothing can be concluded', 'With one seed there is nothing to tell.'),
    (r'\bcan(not)? be had\b', '(not) available', 'Its loss cannot be had.'),
    (r'\bleaves? no trace\b', 'restores the state', 'A look leaves no trace.'),
    (r'\bafterwards as (it|they) (was|were) before\b', 'is restored afterwards', 'the model is afterwards as it was before'),
    (r'\b(random numbers|modes).{0,30}(as they were|as before)\b', 'the RNG state is restored', 'its modes are as before'),
    (r'\bleft alone\b', 'not used, not changed', 'A map that is small enough is left alone.'),
    (r'\bwhole or not at all\b', 'completely or not at all', 'A file is written whole or not at all.'),
    (r'\b[Ww]here to; None:', 'Folder to write to; None:', 'Where to; None: a temporary folder'),
    (r'(?<![Tt]here )\bis no (folder|file|checkpoint|network|learner|grid|table|list|whole number|TOML file|plain data)\b', 'is not a …',
     'runs/x is no folder'),
    (r'\bgoes? on without it\b', 'continues without it', 'The run goes on without it.'),
    (r'\btaken for dead\b', 'counted as dead', 'a trial that was taken for dead'),
    (r'\bheart (that )?(stopped|beats)\b', 'heartbeat', 'whose heart stopped'),
    (r'\bbroken off\b|\brun (that )?(was|is) cut off\b', 'interrupted', 'a run that was cut off'),
    (r'\b(came|comes?) of (it|them)\b', 'the result', 'what came of it'),
    (r'\bcomes? to nothing\b', 'has no result', 'a trial that comes to nothing'),
    (r'\bbeside its original\b', 'in addition to its original', 'A proxy is served beside its original.'),
    (r'\bone word too many\b', 'is not expected', 'runs is one word too many'),
    (r'\bas far as anything tells\b', 'as far as is known', 'as far as anything tells'),
    (r'\bby chance that would be\b', 'chance alone would give', 'by chance that would be 10 %'),
    (r'\bfalls? for (it|the patch)\b', 'relies on the shortcut', 'a network that falls for the patch'),
    (r'\b(begin|begun|began|made) anew\b', 'start again, rebuilt', 'begin anew'),
    (r'\bplain numbers and words\b', 'numbers and text', 'as plain numbers and words'),
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
