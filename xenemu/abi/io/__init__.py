"""Header: public/io/"""
