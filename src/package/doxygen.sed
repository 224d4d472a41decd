# Plain comments of the headers as doxygen takes them, in front of what they are about or behind it.
/^ *[*]|\/[\/*]/s@\\@\\\\@g
s@([;,{(] +)// @\1///< @
s@^( *)// @\1/// @
s@([;,{] +)/\* @\1/**< @
s@^( *)/\* @\1/** @
