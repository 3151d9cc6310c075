"""Phrases around answers: those that introduce, withdraw or deny one.

Texts are `clean` ones. Nothing here knows what is asked for.
"""

from __future__ import annotations

import re

_KIND = r"(?:answer|ans|option|choice|result|solution|letter|value)"
_LEADS = re.compile(
    r"""(?ix)
    (?: (?:so|therefore|thus|hence|then|well|ok(?:ay)?|sure|finally|overall|clearly|in\ conclusion|definitely|certainly|surely|obviously|probably|most\ likely|likely
          |i(?:'d|\ would)?\ (?:think|believe|guess|say)|i(?:'m|\ am)\ (?:confident|sure|certain)) \b ,? \s* (?:that\b)?
      | (?:the|my|our|this)? \s* (?:(?:final|correct|best|right|most\ likely|probable)\s)? \s* KIND \b (?!['-])
            (?:\s+(?:is|are|was|would\ be|should\ be|must\ be|will\ be)\b)? (?:\s*[:=]|\.(?=\s)|\s-(?=\s))?
      | (?:i|we) (?:\ would|\ will|'d|'ll)? \s (?:choose|pick|select|go\ with) \b
      | (?:it|that|this|there) (?:'s | \ (?:is|are|was|were|would\ be|must\ be|should\ be|has) \b)
      | (?:因此|所以|故)? (?:最终|正确|最佳)? (?:的)? (?:答案|选项) \s* (?:应该是|应为|是|为|选)? \s* [:=]?
      | (?:因此|所以|故)? ,? (?:应该?|我)? (?:选择?) \s* :?
      | (?:правильн\w+\s)? (?:ответ|вариант) \b \s* (?:[:=-]|это\b|-\s*это\b)?
      | (?:الإجابة|الجواب|الاجابة|الخيار) (?:\s(?:الصحيحة?|النهائية|هي|هو))* \s* :?
      | (?:la\s|le\s|die\s|a\s)? (?:respuesta|réponse|antwort|resposta|risposta) (?:\s(?:correcta|correcte|correta|corretta))?
            (?:\s(?:es|est|ist|é|è))? \s* :?
      | (?:正解|答え) \s* (?:は)? \s* :? | (?:정답|답) \s* (?:은)? \s* :?
    ) \s*
    """.replace("KIND", _KIND)
)
_ANNOUNCED = re.compile(
    rf"(?i)\b{_KIND}\b(?:\s+(?:is|would be|should be|must be|will be)\b\s*:?|\s*[:=])"
    r"|(?:答案|选项)\s*(?:应该是|应为|是|为|:)|ответ\s*[:-]|(?:الإجابة|الجواب)\s*(?:هي|هو|:)"
)
_CORRECTION = re.compile(
    r"(?i)(?:(?<=[.,;:!?(-])\s*(?:no|nope|nah|нет|لا)(?!\w)|^(?:no|nope|nah|нет|لا)(?=[.,;:!?])"
    r"|\b(?:wait|actually|sorry|correction|oops|hmm+|i mean|scratch that|make that|on second thought|точнее"
    r"|let me (?:reconsider|rethink|correct))\b|不对|等等)[\s.,;:!?-]*"
)
#: A clause that rejects something and leads to the claim: "not A but B", "A is wrong, so B", "neither A nor C, so B".
_REJECTION = re.compile(
    r"""(?ix)
    (?: (?:it(?:'s|\ is)\ |the\ answer\ is\ )? not\s (?!only\b|just\b|merely\b|simply\b|sure\b|certain\b) [^.;:!?]{1,60}?
            (?:,?\ but\b (?!\ also\b) (?:\ rather\b|\ instead\b)? | [,;]\ (?:it's|it\ is|rather)\b)
      | (?: neither\s [^.;:!?]{1,60}? | [^.;:!?]{1,60}? \s (?:is|are|isn't|aren't|can't\ be|cannot\ be)
              (?:\ not)? \s (?:wrong|incorrect|false|out|impossible|excluded|eliminated|ruled\ out|right|correct|possible|true) )
            (?: [,;]?\s (?:and\ )? (?:so|hence|thus|therefore|then|leaving|which\ leaves) \b | [,;]\ (?:it's|it\ is|it\ must\ be) \b )
    ) ,?\s*
    """
)
#: What the clause has to say to reject: "A is right, so B" does not.
_REJECTS = re.compile(r"(?i)\b(?:not|neither|wrong|incorrect|false|out|impossible|excluded|eliminated|cannot)\b|n't\b")
_NEGATION = re.compile(
    r"(?i)\b(?:not|never|no|nope|nah|none|neither|nor|cannot|without|nobody|nothing|wrong|incorrect|false|не|нет|ни|без|неверн\w*|неправильн\w*"
    r"|ليس|ليست|لا|لم|غير|بدون|خطأ)\b|n't\b|[不没非无错]"
)
_SEVERAL = re.compile(r"(?i)\b(?:or|either|alternatively|или|либо|أو)\b|/|或")

#: A statement has few leads one after the other; a longer run of them is no statement.
_MOST_LEADS = 6


def without_leads(text: str) -> str:
    """`text` without what leads to an answer at its start: "So the answer is: B" is "B"."""
    for _ in range(_MOST_LEADS):
        lead = _LEADS.match(text)
        if lead is None or lead.end() == 0:
            break
        text = text[lead.end() :].lstrip(" :")
    return text


def last_claim(text: str) -> str:
    """The final claim: the words after the last correction ("A. No, wait, B" claims B) and after a clause that rejects another
    answer ("not A but B", "A is wrong, so B"), or the whole text without either.

    Empty where the last words take the answer back ("5? Nope").
    """
    claim = _CORRECTION.split(text)[-1].strip()
    rejection = _REJECTION.match(claim)
    return claim[rejection.end() :] if rejection and _REJECTS.search(rejection[0]) else claim


def announced(text: str) -> str | None:
    """The text after the last "the answer is"; None if nothing announces an answer, or if its sentence denies it."""
    announcements = list(_ANNOUNCED.finditer(text))
    if not announcements:
        return None
    found = announcements[-1]
    sentence = re.split(r"[.!?;]\s|,\s*but\b", text[: found.start()])[-1]
    return None if denies(sentence) else text[found.end() :].strip()


def denies(text: str) -> bool:
    """Whether some word of `text` denies: "is not", "wrong", "не", "不"."""
    return bool(_NEGATION.search(text))


def several(text: str) -> bool:
    """Whether `text` leaves a choice: "or", "either", "/"."""
    return bool(_SEVERAL.search(text))
